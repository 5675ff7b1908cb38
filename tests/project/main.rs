//! The project: its rooms, and what its README says.

mod layering;
mod readme;
