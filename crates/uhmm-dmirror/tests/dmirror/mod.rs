//! The tests, on memory of the kind that the including crate says.

pub mod world;

mod chunks;
mod commands;
mod faults;
mod files;
mod gup;
mod places;
pub mod processes;
mod refusals;
