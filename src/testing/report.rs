//! The result of an exploration: figures, and the shortest schedule that breaks a promise.

use std::collections::BTreeMap;
use std::fmt;

use super::schedule::Schedule;

/// What was explored and what was found.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Report {
    /// Crash states that were opened and checked.
    pub states: u64,
    /// States from which the syncs were continued to their end.
    pub continuations: u64,
    /// Lives of the extractor in total.
    pub lives: u64,
    /// Deaths in all schedules with more than the one crash of a state.
    pub deaths: u64,
    /// Images left by a second crash, during the recovery from the first.
    pub second_crashes: u64,
    /// How often each fault fired.
    pub faults: BTreeMap<String, u64>,
    /// Why attachments were given up, and how many: `failed-five-times`, `not-confirmed`, `refused-by-the-source`.
    pub given_up: BTreeMap<&'static str, u64>,
    /// Schedules that lost a record.
    pub lost: u64,
    /// Schedules that announced a record twice, or one that was never staged.
    pub duplicated: u64,
    /// States that did not open or did not pass the store's own check.
    pub unopenable: u64,
    /// Schedules that broke any other promise.
    pub other: u64,
    /// Schedules in which something outside of the promise happened
    /// ([`Act::is_outside_the_promise`](super::Act::is_outside_the_promise)).
    pub outside: u64,
    /// Schedules of these that ended with more than `Fenced` or an ERROR, by the promise that they would have broken.
    pub outside_broken: BTreeMap<Broken, u64>,
    /// The seed of the exploration.
    pub seed: u64,
    /// The shortest schedule found that breaks a promise, and how.
    pub failure: Option<Failure>,
}

/// A schedule that breaks a promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// How it breaks the promise.
    pub violation: Violation,
    /// The schedule: for [`Explore::replay`](super::Explore::replay).
    pub schedule: Schedule,
    /// The crash in words, operation by operation.
    pub crash: String,
}

/// A broken promise, with what was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub kind: Broken,
    /// What was seen.
    pub what: String,
}

/// The promises that can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Broken {
    /// A staged record is in no accepted message; or fewer records were announced than
    /// [expected](super::Explore::expect_records).
    Lost,
    /// A record or an artifact is announced twice, or a record is announced that was never staged; or more records were
    /// announced than expected.
    Duplicated,
    /// The store did not open after a crash, or did not pass its own check.
    Unopenable,
    /// A confirmed artifact is not announced, or the other way round; or too many uploads were left unconfirmed.
    Unconfirmed,
    /// `since`, a bookmark or a value differs from what the last finished run left.
    Watermark,
    /// One event got two messages, or a message changed when it was sent again.
    Conversation,
    /// A page was returned without what the source did not give.
    Half,
    /// Nothing goes on.
    Stuck,
}

impl Report {
    pub(super) fn add(&mut self, other: Report) {
        self.states += other.states;
        self.continuations += other.continuations;
        self.lives += other.lives;
        self.deaths += other.deaths;
        self.second_crashes += other.second_crashes;
        for (fault, times) in other.faults {
            *self.faults.entry(fault).or_default() += times;
        }
        for (reason, times) in other.given_up {
            *self.given_up.entry(reason).or_default() += times;
        }
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.unopenable += other.unopenable;
        self.other += other.other;
        self.outside += other.outside;
        for (kind, times) in other.outside_broken {
            *self.outside_broken.entry(kind).or_default() += times;
        }
        if self.failure.is_none() {
            self.failure = other.failure;
        }
    }

    pub(super) fn note(&mut self, failure: Failure) {
        match failure.violation.kind {
            Broken::Lost => self.lost += 1,
            Broken::Duplicated => self.duplicated += 1,
            Broken::Unopenable => self.unopenable += 1,
            _ => self.other += 1,
        }
        self.failure.get_or_insert(failure);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (fault, times) in &self.faults {
            writeln!(f, "fault {fault}: {times}")?;
        }
        for (reason, times) in &self.given_up {
            writeln!(f, "attachments given up, {reason}: {times}")?;
        }
        writeln!(
            f,
            "seed={} deaths={} second_crashes={} other={}",
            self.seed, self.deaths, self.second_crashes, self.other
        )?;
        if self.outside > 0 {
            writeln!(f, "outside={} of which broken: {:?}", self.outside, self.outside_broken)?;
        }
        if let Some(failure) = &self.failure {
            writeln!(f, "BROKEN {:?}: {}", failure.violation.kind, failure.violation.what)?;
            writeln!(f, "shortest schedule: {}", failure.schedule)?;
            if !failure.crash.is_empty() {
                writeln!(f, "its crash: {}", failure.crash)?;
            }
        }
        write!(
            f,
            "states={} continuations={} lives={} faults={} lost={} duplicated={} unopenable={}",
            self.states,
            self.continuations,
            self.lives,
            self.faults.values().sum::<u64>(),
            self.lost,
            self.duplicated,
            self.unopenable
        )
    }
}
