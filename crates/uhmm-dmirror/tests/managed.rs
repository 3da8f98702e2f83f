//! The devices under real page faults, on memory of the space's own: what the kernel's own tests leave
//! out, and each command's ordinary path besides.

mod dmirror;

use dmirror::world::Kind;

const KIND: Kind = Kind::Managed;
