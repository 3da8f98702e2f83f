//! What tests and measurements look at. Not a part of the library's interface.
//!
//! It is narrow on purpose: the core has calls without `unsafe` that drop or move pages, for callers
//! that keep its protocols, and safe code could break a live slice with them. Nothing here can.

use crate::build::{CoreSpace, Space};
use uhmm_core::addr::{PageNo, PageRange};
use uhmm_core::device::Owner;
use uhmm_core::entry::State;
use uhmm_core::fault::{Access, Scratch};
use uhmm_core::hints::Hints;
use uhmm_core::stats::Stats;
use uhmm_linux::mmu::DESCRIPTORS;

/// The inside of a space, to look at. See the module's head.
pub struct Internals<'a>(&'a CoreSpace);

impl Space {
    /// The inside of the space, for tests and measurements.
    #[doc(hidden)]
    pub fn internals(&self) -> Internals<'_> {
        Internals(self.core())
    }
}

impl<'a> Internals<'a> {
    /// The pages that the space has reserved, to share them out.
    pub fn reserved(&self) -> PageRange {
        self.0.mmu().space_range()
    }

    /// The state of a page now.
    pub fn state(&self, page: PageNo) -> State {
        self.0.state(page)
    }

    /// What the program wants of a page.
    pub fn hints(&self, page: PageNo) -> Hints {
        self.0.hints(page)
    }

    /// The running counters. For programs there is [`Space::statistics`].
    pub fn stats(&self) -> &'a Stats {
        self.0.stats()
    }

    /// Whose the pages of a device are.
    pub fn owner(&self, device: u8) -> Option<Owner> {
        self.0.owner(device)
    }

    /// Pushes out what the devices have room for; returns the pages left in RAM. On a thread that
    /// touches no managed memory.
    pub fn push_out(&self, scratch: &mut Scratch) -> usize {
        self.0.push_out(scratch)
    }

    /// Serves a fault, as a handler does. On a thread that touches no managed memory.
    pub fn fault(&self, page: PageNo, access: Access, scratch: &mut Scratch) {
        self.0.fault(page, access, scratch);
    }

    /// Panics where entries, frames, device pages and the charge disagree. For when nothing is in
    /// flight.
    pub fn check_invariants(&self) {
        self.0.check_invariants();
    }

    /// The file descriptors that the space works with, or -1.
    pub fn descriptors(&self) -> [i32; DESCRIPTORS] {
        self.0.mmu().descriptors()
    }
}
