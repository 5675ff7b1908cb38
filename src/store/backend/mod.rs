//! Where the bytes of a store are.

pub(crate) mod file;
