//! The project: its rooms, and what its README and pages say.

mod docs;
mod layering;
