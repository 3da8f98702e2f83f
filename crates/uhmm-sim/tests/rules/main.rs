//! The rules of the design, each with a test that fails when it is broken. `docs/rules.md` lists
//! them, and `cargo xtask mutants` breaks each.

mod adopt;
mod allocations;
mod chunks;
mod coherent;
mod devices;
mod discard;
mod duplicates;
mod failure;
mod faults;
mod fences;
mod fork;
mod holds;
mod hook;
mod latches;
mod lifetimes;
mod migrate_device;
mod migrate_vma;
mod migration;
mod notifiers;
mod oversubscribe;
mod pinned;
mod pins;
mod pressure;
mod random;
mod range_fault;
mod ranges;
mod rig;
mod selection;
mod tracked;
mod types;
mod usage;
mod views;
mod walks;
mod watcher;
mod world;
