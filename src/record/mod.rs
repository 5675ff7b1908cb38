//! What a record is: one JSON object that becomes one line of an artifact; and what metadata says of records.
//!
//! [`Metadata`] declares record types, built up or read from JSON, and checks itself. A [`Normalizer`] makes records
//! of what a source says, by the metadata. A [`Checker`] checks records against their record type: one at a time, in
//! a [`BatchChecker`], or as a [`RecordStream`] of a whole file. What any of them finds is a [`Finding`].
//!
//! A line is `{"id":"...","created_date":"...","modified_date":"...","data":{...}}`: id first, then the dates, then
//! everything else under `data`; or, for the few item types that the platform wants flat (attachments, external sync
//! units, the metadata document), any JSON object as it is. Source:
//! <https://developer.devrev.ai/airdrop/data-extraction>.

mod any;
mod attachment;
mod broken;
mod check;
mod convert;
mod converter;
mod expected;
mod finding;
mod hints;
mod line;
mod locate;
mod members;
mod metadata;
mod moment;
mod normalize;
mod path;
mod read;
mod rules;
mod schema;
mod stream;
mod targets;
mod text;
mod values;
mod workflow;

pub use attachment::Attachment;
pub(crate) use attachment::ITEM_TYPE as ATTACHMENTS;
pub use check::{BatchChecker, Checker};
pub use finding::{Excerpt, Finding, FindingCounts, Findings, Rule, Severity, Tally};
pub use line::Record;
pub use metadata::{EnumValue, Field, Metadata, RecordType, StageDiagram};
pub use moment::TimeFormat;
pub use normalize::Normalizer;
pub use path::FieldPath;
pub use rules::{FieldRule, Undeclared};
pub use stream::{RecordStream, reader};
