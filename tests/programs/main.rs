//! The programs of the library: the dump.

mod dump;
mod place;
mod schema;
mod screens;
