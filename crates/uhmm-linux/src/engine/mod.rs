//! Fault engines: how a fault gets from the kernel to the core's resolver, and back.

pub mod stacks;
pub mod thread;
