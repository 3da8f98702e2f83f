//! Heterogeneous memory management itself, for user space.
//!
//! The state of every page is an entry ([`entry`]); device memory is pagemaps of reference-counted
//! pages, of several [types](memory_type); pages move in named phases: on a [`fault`], by [`reclaim`],
//! by [request](migrate), on [eviction](evict). The core makes no system call: the CPU's page tables are behind
//! the [`Mmu`](mmu::Mmu) trait, devices behind [`Device`](device::Device).
//!
//! `docs/page-life.md` has every state and edge, `docs/locking.md` who may wait for what.
#![deny(unsafe_code)]

pub mod addr;
pub mod adopt;
mod around;
mod check;
mod claims;
mod cow;
pub mod device;
pub mod entry;
pub mod error;
pub mod events;
pub mod evict;
pub mod failure;
pub mod fault;
pub mod fault_here;
pub mod foreign;
pub mod fork;
pub mod frames;
mod gate;
pub mod grip;
pub mod hints;
pub mod hold;
#[allow(unsafe_code)]
pub mod lock;
mod make_room;
pub mod map;
pub mod memory_type;
pub mod migrate;
pub mod mirror;
pub mod mmu;
mod pagemap;
pub mod pin;
mod protection;
pub mod ranges;
pub mod reclaim;
pub mod regions;
mod space;
pub mod stats;
mod stay;
mod store;
pub mod usage;
pub mod user_copy;
pub mod view;
pub mod walk;

pub use hold::{DevicePages, PageRef};
pub use pagemap::{AddChunkError, AllocError};
pub use space::{MIN_BUDGET_PAGES, Space};
pub use stay::MIN_STAY;
pub use view::View;
