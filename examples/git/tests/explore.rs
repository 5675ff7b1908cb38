//! The exploration in `docs/proof.md`: the Git extractor is killed at every step of two syncs of a repository.

#[allow(dead_code, reason = "the program uses the rest")]
#[path = "../src/extractor.rs"]
mod extractor;
#[allow(dead_code, reason = "the program uses the rest")]
#[path = "../src/repository.rs"]
mod repository;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use highwater::testing::Explore;
use indicatif::ProgressBar;

use crate::extractor::GitExtractor;
use crate::repository::Repository;
use crate::support::git;

/// A repository with some commits, and an image that is an attachment.
fn repository() -> (tempfile::TempDir, Repository) {
    let dir = tempfile::tempdir().unwrap();
    git(dir.path(), &["init", "--quiet"]);
    git(dir.path(), &["config", "user.name", "Somebody"]);
    git(dir.path(), &["config", "user.email", "somebody@example.com"]);
    for number in 0..6 {
        std::fs::write(dir.path().join(format!("{number}.png")), format!("image {number}")).unwrap();
        git(dir.path(), &["add", "."]);
        git(dir.path(), &["commit", "--quiet", "--message", &format!("commit {number}")]);
    }
    let repository = Repository::open(dir.path()).unwrap();
    (dir, repository)
}

#[test]
fn the_git_extractor_keeps_the_promise_wherever_it_dies() {
    let (_dir, repository) = repository();
    let (images, bar) = ([":(top,glob)*.png".to_owned()], ProgressBar::hidden());
    let report = Explore::new()
        .states(150)
        .run(|_life| GitExtractor::new(&repository, 2, Duration::ZERO, &images, &bar));
    assert!(report.failure.is_none(), "{report}");
    assert!(report.continuations > 0 && report.deaths > 0, "{report}");
}
