//! Shows a store to a person or a script.
fn main() {}
