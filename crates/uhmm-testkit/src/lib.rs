//! What tests of several crates share.
//!
//! - [`conformance()`]: the rules that every device obeys, checked in one call;
//! - [`Oracle`]: a flat record of what a program wrote, to compare every byte with;
//! - [`FlakyDevice`]: a device around another one that fails on command, and that panics when the
//!   core breaks its promises to devices;
//! - [`Rng`] and [`PageKind`]: contents that a seed brings back.
#![forbid(unsafe_code)]

mod conformance;
mod content;
mod flaky;
mod oracle;

pub use conformance::conformance;
pub use content::{PageKind, Rng, content};
pub use flaky::FlakyDevice;
pub use oracle::Oracle;
