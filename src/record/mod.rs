//! Records, the metadata that declares them, and checks of one against the other.
//!
//! A [`Record`] is one JSON object, which becomes one line of an artifact. [`Metadata`] declares record types; it is
//! built or read from JSON, and can be checked itself. A [`Normalizer`] converts objects of a source into records. A
//! [`Checker`] checks records against their record type: one at a time, in a [`BatchChecker`], or a whole file as a
//! [`RecordStream`]. Each reports [`Finding`]s.
//!
//! A line is `{"id":"...","created_date":"...","modified_date":"...","data":{...}}`: id first, then the dates, then
//! everything else under `data`. A few item types are flat (attachments, external sync units, the metadata document):
//! their lines are any JSON object. Source: <https://developer.devrev.ai/airdrop/data-extraction>.

mod any;
mod attachment;
mod broken;
mod check;
mod clean;
mod convert_object;
mod convert_value;
mod expected;
mod field_rules;
mod finding;
mod hints;
mod id;
mod line;
mod locate;
mod members;
mod metadata;
mod moment;
mod normalize;
mod path;
mod read;
mod schema;
mod stream;
mod targets;
mod text;
mod values;
mod workflow;

pub use attachment::Attachment;
pub(crate) use attachment::ITEM_TYPE as ATTACHMENTS;
pub use check::{BatchChecker, Checker};
pub use field_rules::{FieldRule, Undeclared};
pub use finding::{Excerpt, Finding, FindingCounts, Findings, Rule, Severity, Tally};
pub use id::Id;
pub use line::Record;
pub use metadata::{EnumValue, Field, Metadata, RecordType, StageDiagram};
pub use moment::TimeFormat;
pub use normalize::Normalizer;
pub use path::FieldPath;
#[cfg(feature = "inspect")]
pub(crate) use path::quoted;
pub use stream::{RecordStream, reader};
