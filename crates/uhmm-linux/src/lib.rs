//! The real MMU: userfaultfd, the frame pool's memory, the fault engines, and the probe.

pub mod abi;
pub mod adopt;
pub mod adopted;
pub mod arena;
pub mod child;
pub mod end;
pub mod engine;
pub mod files;
mod foreign;
mod managed;
pub mod mapping;
pub mod mmu;
mod moves;
pub mod outlines;
pub mod own;
mod own_copies;
mod present;
pub mod probe;
pub mod proc_files;

/// Protection of mapped memory.
pub mod protection {
    pub use rustix::mm::MprotectFlags;
}

pub mod shared_stats;
pub mod sigbus;
pub mod signals;
pub mod stack;
pub mod vmas;
