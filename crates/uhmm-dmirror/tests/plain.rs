//! The same on memory that the program has mapped itself, and that the space manages from when it first
//! migrates; and what can be of no other kind.

mod dmirror;
#[path = "dmirror/foreign.rs"]
mod foreign;

use dmirror::world::Kind;

const KIND: Kind = Kind::Plain;
