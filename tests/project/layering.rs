//! The modules of the crate are as in `docs/design.md`: a module uses only its own layer and those below, and a crate
//! that only one module may use is used nowhere else.
//!
//! The table under "Modules" in `docs/design.md` is compared with every path in every file of `src/`. The source is
//! read as tokens: comments, doc comments and strings are ignored, and paths inside macros count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A row of the table, of one module.
#[derive(Debug, Clone)]
struct Entry {
    layer: u32,
    /// `store/tables`, or, with everything in that folder, `record/`.
    path: String,
    /// Crates that only modules in the same row may use.
    crates: Vec<String>,
}

/// A path in the source, and the module that contains it.
type Named = (Vec<String>, Vec<String>);

/// The paths in each file, by its module, such as `store/tables`, or by `bin/...` for the binary.
type Sources = BTreeMap<String, Vec<Named>>;

fn lib() -> String {
    fs::read_to_string(src().join("lib.rs")).unwrap()
}

fn design() -> String {
    fs::read_to_string(src().join("../docs/design.md")).unwrap()
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn sources() -> Sources {
    fn read(dir: &Path, found: &mut Sources) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(src()).unwrap().with_extension("");
                let module = relative.to_str().unwrap().replace('\\', "/");
                let module = module.strip_suffix("/mod").unwrap_or(&module);
                found.insert(module.to_owned(), named(module, &fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut found = Sources::new();
    read(&src(), &mut found);
    found.remove("lib");
    found
}

/// What a file, or a line of it, names.
fn named(module: &str, source: &str) -> Vec<Named> {
    let tokens = TokenStream::from_str(source).unwrap_or_else(|error| panic!("{module}: {error}"));
    let module: Vec<String> = module.split('/').map(str::to_owned).collect();
    let mut found = Vec::new();
    paths(tokens, &module, &mut found);
    found
}

/// The table of the page on the design.
fn entries(design: &str) -> Vec<Entry> {
    let names = |cell: &str| -> Vec<String> {
        cell.split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .map(|name| {
                let inner = name.strip_prefix('`').and_then(|name| name.strip_suffix('`'));
                inner
                    .unwrap_or_else(|| panic!("{name:?} in the table of modules is not in backticks"))
                    .to_owned()
            })
            .collect()
    };
    let (_, section) = design.split_once("\n## Modules\n").expect("docs/design.md has its table of modules");
    let rows = section.lines().take_while(|line| !line.starts_with('#')).filter_map(|line| {
        let row = line.strip_prefix('|')?.strip_suffix('|')?;
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [layer, entries, _, crates] = cells[..] else { panic!("{line:?} has not four columns") };
        Some((layer.parse().ok()?, names(entries), names(crates)))
    });
    rows.flat_map(|(layer, entries, crates)| {
        entries.into_iter().map(move |path| Entry { layer, path, crates: crates.clone() })
    })
    .collect()
}

fn entry_of<'r>(entries: &'r [Entry], module: &str) -> Option<&'r Entry> {
    entries.iter().find(|entry| match entry.path.strip_suffix('/') {
        Some(folder) => module == folder || module.starts_with(&entry.path),
        None => module == entry.path,
    })
}

/// Every path in the tokens.
fn paths(tokens: TokenStream, module: &[String], found: &mut Vec<Named>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let is = |at: usize, c: char| matches!(tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == c);
    let colons = |at: usize| is(at, ':') && is(at + 1, ':');
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            // `pub(in crate::store)` says who may see a thing, and uses nothing.
            TokenTree::Group(group) if matches!(group.stream().into_iter().next(), Some(TokenTree::Ident(first)) if first == "in") =>
                {}
            TokenTree::Group(group) => paths(group.stream(), module, found),
            // `use<'a, T>` after a type says what it captures, and names nothing.
            TokenTree::Ident(ident) if ident == "use" && !is(at + 1, '<') => {
                let end = (at..tokens.len()).find(|&at| is(at, ';')).expect("a use ends in a semicolon");
                let mut leaves = Vec::new();
                use_tree(&tokens[at + 1..end], &[], &mut leaves);
                found.extend(leaves.into_iter().map(|path| (path, module.to_vec())));
                at = end;
            }
            TokenTree::Ident(ident) if ident == "mod" => {
                if let (Some(TokenTree::Ident(name)), Some(TokenTree::Group(body))) =
                    (tokens.get(at + 1), tokens.get(at + 2))
                {
                    let mut inner = module.to_vec();
                    inner.push(name.to_string());
                    paths(body.stream(), &inner, found);
                    at += 2;
                }
            }
            TokenTree::Ident(first) => {
                // What goes on from something else (`Vec::<u8>::new`, `<T as A>::b`) is no path of its own. But for an
                // arrow, a `>` before the colons ends such a thing; an identifier is part of the path collected below.
                let follows = at >= 3
                    && colons(at - 2)
                    && is(at - 3, '>')
                    && !(at >= 4 && (is(at - 4, '-') || is(at - 4, '=')));
                let mut path = vec![first.to_string()];
                while colons(at + 1)
                    && let Some(TokenTree::Ident(next)) = tokens.get(at + 3)
                {
                    path.push(next.to_string());
                    at += 3;
                }
                if path.len() > 1 && !follows {
                    found.push((path, module.to_vec()));
                }
            }
            _ => {}
        }
        at += 1;
    }
}

/// Every path that a `use` names.
fn use_tree(tokens: &[TokenTree], before: &[String], leaves: &mut Vec<Vec<String>>) {
    let mut path = before.to_vec();
    for token in tokens {
        match token {
            TokenTree::Ident(ident) if ident == "as" => break,
            TokenTree::Ident(ident) if ident == "self" && !path.is_empty() => {}
            TokenTree::Ident(ident) => path.push(ident.to_string()),
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                for part in inner.split(|token| matches!(token, TokenTree::Punct(p) if p.as_char() == ',')) {
                    if !part.is_empty() {
                        use_tree(part, &path, leaves);
                    }
                }
                return;
            }
            _ => {}
        }
    }
    leaves.push(path);
}

/// The module of the library that a path leads to, or `None` if it leads out of it. `""` is the crate's front.
fn target(path: &[String], module: &[String], modules: &BTreeSet<String>) -> Option<String> {
    let mut place = Vec::new();
    let mut rest = path;
    match rest.first()?.as_str() {
        "crate" => rest = &rest[1..],
        "self" => {
            place = module.to_vec();
            rest = &rest[1..];
        }
        "super" => {
            place = module.to_vec();
            while rest.first().is_some_and(|part| part == "super") {
                place.pop();
                rest = &rest[1..];
            }
        }
        first => {
            let child = [module, &[first.to_owned()]].concat().join("/");
            if !modules.contains(&child) {
                return None;
            }
            place = module.to_vec();
        }
    }
    for part in rest {
        place.push(part.clone());
        if !modules.contains(&place.join("/")) {
            place.pop();
            break;
        }
    }
    // What is written inside of a file's own module, `tests` say, is the file's.
    while !place.is_empty() && !modules.contains(&place.join("/")) {
        place.pop();
    }
    Some(place.join("/"))
}

/// Everything in the source that the table of modules does not allow.
fn findings(sources: &Sources) -> Vec<String> {
    let mut findings = Vec::new();
    let entries = entries(&design());
    let modules: BTreeSet<String> =
        sources.keys().filter(|name| !name.starts_with("bin/")).cloned().collect();
    let alone: BTreeSet<&String> = entries.iter().flat_map(|entry| &entry.crates).collect();
    for entry in &entries {
        if !sources.keys().any(|module| entry_of(std::slice::from_ref(entry), module).is_some()) {
            findings.push(format!("the table has {}, which is not there", entry.path));
        }
    }
    for (name, named) in sources {
        let in_bin = name.starts_with("bin/");
        let Some(entry) = entry_of(&entries, name) else {
            findings.push(format!("{name} is in no layer: give it a place in the table of docs/design.md"));
            continue;
        };
        for (path, module) in named {
            let shown = path.join("::");
            let first = &path[0];
            if alone.contains(first) && !entry.crates.contains(first) {
                findings.push(format!("{name} uses {first} ({shown}), which another module is alone with"));
            }
            // A binary sees the library from outside.
            if in_bin {
                continue;
            }
            let Some(target) = target(path, module, &modules) else { continue };
            if target.is_empty() {
                findings.push(format!("{name} names {shown} by way of the crate's front"));
                continue;
            }
            let used = entry_of(&entries, &target);
            if used.is_some_and(|used| used.layer > entry.layer) {
                findings.push(format!("{name} (layer {}) uses {shown}, which is above it", entry.layer));
            }
            if name.split('/').next() == Some("store") && target.split('/').next() == Some("airdrop") {
                findings.push(format!("{name} uses {shown}: the store knows nothing of Airdrop"));
            }
        }
    }
    findings.sort();
    findings.dedup();
    findings
}

#[test]
fn a_module_uses_only_modules_on_its_own_layer_and_below() {
    let findings = findings(&sources());
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

/// The files that each file names, as the compiler finds them. A file's own unit tests name what they like.
fn imports(sources: &Sources) -> BTreeMap<String, BTreeSet<String>> {
    let modules: BTreeSet<String> = sources.keys().cloned().collect();
    let mut imports = BTreeMap::new();
    for (name, named) in sources {
        let mut targets = BTreeSet::new();
        for (path, module) in named {
            let in_tests = name.ends_with("/tests") || module.last().is_some_and(|last| last == "tests");
            if let Some(target) = target(path, module, &modules)
                && !in_tests
                && target != *name
                && sources.contains_key(&target)
            {
                targets.insert(target);
            }
        }
        imports.insert(name.clone(), targets);
    }
    imports
}

/// Every set of files in which each one leads to each other one, directly or indirectly.
fn circles(imports: &BTreeMap<String, BTreeSet<String>>) -> Vec<Vec<String>> {
    let reachable = |from: &String| {
        let mut found = BTreeSet::new();
        let mut next: Vec<&String> = imports.get(from).into_iter().flatten().collect();
        while let Some(file) = next.pop() {
            if found.insert(file.clone()) {
                next.extend(imports.get(file).into_iter().flatten());
            }
        }
        found
    };
    let reachable: BTreeMap<&String, BTreeSet<String>> =
        imports.keys().map(|file| (file, reachable(file))).collect();
    let mut circles: Vec<Vec<String>> = Vec::new();
    for (file, of) in &reachable {
        if of.contains(*file) && !circles.iter().any(|circle| circle.contains(file)) {
            circles.push(of.iter().filter(|other| reachable[other].contains(*file)).cloned().collect());
        }
    }
    circles
}

#[test]
fn no_files_import_each_other_in_however_many_steps() {
    let found = circles(&imports(&sources()));
    let found: Vec<String> = found.iter().map(|circle| circle.join(", ")).collect();
    assert!(found.is_empty(), "circles of files:\n{}", found.join("\n"));
}

#[test]
fn a_circle_of_files_is_found() {
    let circles_with = |added: &[(&str, &str)]| {
        let sources = added.iter().fold(sources(), |all, (module, line)| with(all, module, line));
        circles(&imports(&sources))
    };
    for added in [
        // Two files of one layer, then a way round by a third, by a folder's front, and by a path without a `use`.
        &[("store/notes", "use super::lifecycle::close_run;")][..],
        &[
            ("store/run_handle", "use super::findings;"),
            ("store/findings", "use super::attachments::settle;"),
        ],
        &[("store/run_handle", "use crate::store::Store;")],
        &[("store/rows", "fn f() { crate::store::run::f(); }")],
        &[
            ("artifact", "use crate::codec_of_theirs;"),
            ("model", "use crate::clock;"),
            ("clock", "use crate::model;"),
        ],
    ] {
        assert!(!circles_with(added).is_empty(), "{added:?}");
    }
    for added in [
        // Downwards, within a file's unit tests, and in words.
        &[("store/lifecycle", "use super::rows;")][..],
        &[("store/rows", "mod tests { use super::super::run::Run; }")],
        &[("store/rows", "// use super::run::Run;")],
    ] {
        assert!(circles_with(added).is_empty(), "{added:?}");
    }
}

#[test]
fn lib_rs_lists_the_modules_layer_by_layer() {
    let sources = sources();
    let entries = entries(&design());
    let tokens: Vec<_> = TokenStream::from_str(&lib()).unwrap().into_iter().collect();
    let listed: Vec<String> = tokens
        .windows(3)
        .filter_map(|window| match window {
            [TokenTree::Ident(word), TokenTree::Ident(name), TokenTree::Punct(end)]
                if word == "mod" && end.as_char() == ';' =>
            {
                Some(name.to_string())
            }
            _ => None,
        })
        .collect();
    let top: BTreeSet<&str> = sources.keys().filter(|name| !name.contains('/')).map(String::as_str).collect();
    assert_eq!(listed.iter().map(String::as_str).collect::<BTreeSet<_>>(), top);
    let layers: Vec<u32> = listed.iter().map(|name| entry_of(&entries, name).unwrap().layer).collect();
    assert!(layers.is_sorted(), "{listed:?} are of layers {layers:?}");
}

/// The source with a line added to a module.
fn with(mut sources: Sources, module: &str, line: &str) -> Sources {
    sources.entry(module.to_owned()).or_default().extend(named(module, line));
    sources
}

#[test]
fn what_is_not_allowed_is_found() {
    let sources = sources();
    for (module, line, finding) in [
        ("store/tables", "use crate::airdrop::serve;", "which is above it"),
        ("store/tables", "use super::run::Run;", "which is above it"),
        ("store/rows", "use super::{codec, batches::{self, Batch as B}};", "uses super::batches"),
        ("store/codec", "use super::super::store::Run;", "which is above it"),
        ("model", "fn f() { assert!(crate::record::Record::flat(&1).is_ok()); }", "crate::record::Record"),
        (
            "model",
            "mod tests { use super::super::clock; use super::super::artifact; }",
            "artifact, which is above",
        ),
        ("clock", "macro_rules! m { () => { $crate::store::Store } }", "crate::store::Store"),
        ("error", "use crate::Store;", "by way of the crate's front"),
        ("store/run_handle", "use crate::airdrop::event::Event;", "knows nothing of Airdrop"),
        ("store/run_handle", "fn f() -> ::redb::Database { todo!() }", "store/run_handle uses redb"),
        ("store/batches", "use flate2::{Crc};", "store/batches uses flate2"),
        ("airdrop/serve", "fn f() { bincode::serde::encode_to_vec(1, 2); }", "airdrop/serve uses bincode"),
        ("airdrop/serve", "fn f() { println!(\"{:?}\", clap::Command::new(\"a\")); }", "uses clap"),
        ("model", "#[derive(thiserror::Error)] struct E;", "model uses thiserror"),
        ("bin/highwater-dump/main", "use redb::Database;", "uses redb"),
        ("store/manager", "", "store/manager is in no layer"),
        ("manager", "", "manager is in no layer"),
    ] {
        let findings = findings(&with(sources.clone(), module, line));
        assert!(findings.iter().any(|found| found.contains(finding)), "{module}: {line}: {findings:?}");
    }
    let mut without_disk = sources;
    without_disk.remove("store/disk");
    assert!(findings(&without_disk).iter().any(|found| found.contains("which is not there")));
}

#[test]
fn what_is_only_spoken_of_is_not_used() {
    let line = r##"
        /// As [`crate::airdrop::serve`] has it, with redb::Database.
        // use crate::airdrop::serve;
        const A: &str = "crate::airdrop::serve"; /* use redb::Database; */
        const B: &str = r#"use crate::testing::Explore;"#;
        fn f() { std::redb::clap(); <Vec<u8> as IntoIterator>::redb::x(); }
    "##;
    assert_eq!(findings(&with(sources(), "model", line)), Vec::<String>::new());
}
