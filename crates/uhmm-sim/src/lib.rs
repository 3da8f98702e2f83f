//! A simulated MMU, for tests of the core.
//!
//! [`SimMmu`] is page tables in plain memory: a map from pages to their bytes. Nothing faults by
//! itself. A test touches pages with [`SimMmu::touch_read`] and [`SimMmu::touch_write`], and where
//! these answer [`Fault::Missing`] or [`Fault::Tracked`] it calls the core's fault handler and touches
//! again, as a CPU does.
//!
//! The machine has ordinary memory and the memory of arenas. They are counted apart: a page is of one
//! of them for as long as it exists, wherever it is moved.
//!
//! It keeps the same rules as the kernel (a pinned page does not move, a page that is there is not
//! overwritten), fails on command ([`Failure`]), and panics when the core breaks the contract of
//! [`Mmu`](uhmm_core::mmu::Mmu).
#![forbid(unsafe_code)]

mod arenas;
mod failure;
mod foreign;
mod memory;
mod mmu;
mod pages;
mod rng;

pub use failure::{Call, Failure};
pub use foreign::Mapping;
pub use mmu::SimMmu;
pub use pages::Fault;
pub use rng::Rng;
