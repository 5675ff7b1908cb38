//! Records: normalised by the metadata, and checked.

mod check;
mod metadata;
mod normalize;
mod validate;
