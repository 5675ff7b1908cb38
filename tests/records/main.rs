//! Records: normalised by the metadata, and checked.

mod border;
mod check;
mod metadata;
mod normalize;
mod validate;
