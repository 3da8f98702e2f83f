//! A simulated MMU, for tests of the core.
//!
//! [`SimMmu`] is page tables in plain memory: a map from pages to their bytes. Nothing faults by
//! itself. A test touches pages with [`SimMmu::touch_read`] and [`SimMmu::touch_write`], and where
//! these answer [`Fault::Missing`] it calls the core's fault handler and touches again, as a CPU
//! does.
//!
//! It keeps the same rules as the kernel (a pinned page does not move, a page that is there is not
//! overwritten), fails on command ([`Failure`]), and panics when the core breaks the contract of
//! [`Mmu`](uhmm_core::mmu::Mmu).
#![forbid(unsafe_code)]

mod failure;
mod mmu;
mod pages;

pub use failure::{Call, Failure};
pub use mmu::SimMmu;
pub use pages::Fault;
