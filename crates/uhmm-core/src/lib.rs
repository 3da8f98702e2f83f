//! Heterogeneous memory management itself, for user space.
//!
//! The state of every page is an entry ([`entry`]); device memory is pagemaps of reference-counted
//! pages; pages move by [migration](mod@migrate) in named phases: on a [`fault`], by [`reclaim`], on
//! [eviction of a device](evict). The core makes no system call: the CPU's page tables are behind
//! the [`Mmu`](mmu::Mmu) trait, devices behind [`Device`](device::Device).
//!
//! `docs/page-life.md` has every state and edge, `docs/locking.md` who may wait for what.
#![deny(unsafe_code)]

pub mod addr;
mod around;
mod bitmap;
pub mod device;
pub mod entry;
pub mod error;
pub mod evict;
pub mod fault;
pub mod fork;
pub mod frames;
mod gate;
#[allow(unsafe_code)]
pub mod lock;
pub mod migrate;
pub mod mmu;
mod pagemap;
mod protection;
pub mod ranges;
pub mod reclaim;
pub mod regions;
mod space;
pub mod stats;

pub use space::{MIN_BUDGET_PAGES, Space};
