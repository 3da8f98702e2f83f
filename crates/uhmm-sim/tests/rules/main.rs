//! The rules of the design, each with a test that fails when it is broken. `docs/rules.md` lists
//! them, with the mutation of the core that each test was seen to catch.

mod allocations;
mod devices;
mod faults;
mod fork;
mod hook;
mod lifetimes;
mod migration;
mod pressure;
mod random;
mod ranges;
mod world;
