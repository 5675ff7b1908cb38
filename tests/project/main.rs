//! The project: its modules, and what its README and pages say.

mod docs;
mod layering;
