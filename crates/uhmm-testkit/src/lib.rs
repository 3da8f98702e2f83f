//! What tests of several crates share.
//!
//! - [`conformance()`]: the rules that every device obeys, by itself and in a space, checked in one
//!   call;
//! - [`Oracle`]: a flat record of what a program wrote, to compare every byte with;
//! - [`FlakyDevice`]: a device around another one that fails on command, and that panics when the
//!   core breaks its promises to devices; [`Shared`]: a device that a test keeps a hand on;
//! - [`Rng`] and [`PageKind`]: contents that a seed brings back.
#![forbid(unsafe_code)]

mod conformance;
mod content;
mod flaky;
mod oracle;
mod shared;

pub use conformance::conformance;
pub use content::{PageKind, content};
pub use flaky::FlakyDevice;
pub use oracle::Oracle;
pub use shared::Shared;
pub use uhmm_sim::Rng;
