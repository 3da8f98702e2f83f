//! Memory of the process that the space does not manage: what a mirror sees of it, and how it is read and
//! written.
//!
//! Its pages have numbers like all others, and entries that say None. What is there only the kernel
//! knows: [`ForeignMemory`] asks it, and is the rest of what a [`Mmu`](crate::mmu::Mmu) is.
//!
//! # What holds
//!
//! Nobody claims such pages, and their entries do not change. So what a device's table says of them is right
//! because of who changes them:
//!
//! | what changes | who tells | what the device finds |
//! | --- | --- | --- |
//! | the mapping: it is unmapped, moved, protected, dropped, mapped over | whoever asks the kernel for it, by [`Space::invalidating`] around the call: the interval is active from before the first page changes until the call is over | a look in between waits or is made again; an entry from before is struck out |
//! | who manages it: it is adopted, or handed back | the same, from before the first fault is served, and until the last is not | an entry of a foreign page is never one of a page that may go to a device |
//! | the page under the mapping: a copy is made for a write, the kernel swaps it, or makes it huge | nobody | nothing: it reads and writes by address, and finds the page that is there |
//! | any of that by a system call that does not pass the space | nobody | an error, or what is mapped there now (below) |
//!
//! A look is made between `read_begin` and `read_retry` ([`crate::mirror`]), what the program may do
//! included. So is what a look leads to: a refusal counts only if the sequence has not moved, for the
//! page may have come to be the space's in between.
//!
//! Devices read and write with [`ForeignMemory::try_read`] and [`ForeignMemory::try_write`], which stop where
//! the program would be killed. A mapping that has gone behind our back is an error for the device then, and a
//! file that was cut short too. Where something else was mapped in its place, unseen, the device works on
//! that, as the program itself would.
//!
//! [`Space::invalidating`]: crate::Space::invalidating

use crate::addr::{PageNo, PageRange};
use crate::mirror::Permission;

/// A page that the space does not manage, as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// What the program may do with it.
    pub allowed: Permission,
    /// The page that is there; `None`: none, until somebody touches it.
    pub page: Option<ForeignPage>,
}

/// What is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignPage {
    /// A write goes to a copy, which is made by it: the page of zeros, or a file's in a private mapping.
    pub copied_on_write: bool,
    /// It is the kernel's page of zeros.
    pub zero: bool,
    /// Of the mapping that it is part of: see [`Mapped::Ram`](crate::mirror::Mapped::Ram).
    pub order: u8,
}

impl ForeignPage {
    /// An ordinary page, which is written in place.
    pub const ORDINARY: Self = Self {
        copied_on_write: false,
        zero: false,
        order: 0,
    };
}

/// Why pages did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The program would be killed for a touch of one of them: the file ends before it, or a device does
    /// not answer.
    Deadly,
    /// One of them is lost: its memory has failed.
    Poisoned,
    /// There is no memory for them, or their mapping has changed: a look tells which.
    Later,
}

/// The part of a [`Mmu`](crate::mmu::Mmu) that is about memory which the space does not manage, and about
/// reading and writing what may not be there. None of it runs in the fault path.
pub trait ForeignMemory {
    /// Looks at `pages`, none of which the space manages: calls `each` for runs of pages that are alike,
    /// in ascending order. What it is not called for is not mapped. `false`: the kernel does not say.
    fn look(&self, pages: PageRange, each: &mut dyn FnMut(PageRange, Foreign)) -> bool;

    /// Has `pages`, which the space does not manage, there as a read or a write of the program would. What
    /// comes of it a look tells.
    ///
    /// # Errors
    /// [`Refusal`]; some of them may be there.
    fn populate(&self, pages: PageRange, write: bool) -> Result<(), Refusal>;

    /// Calls `each` for the parts of `pages` that are mapped as huge pages of 2 MiB.
    fn huge(&self, pages: PageRange, each: &mut dyn FnMut(PageRange));

    /// Reads bytes from `offset` in `page` on, as a system call does: any memory of the process that the
    /// program may read, as many pages as there are. Returns how many bytes came before the first that the
    /// program could not read. A page that the space serves is best brought before: it is a fault in the
    /// middle of a system call, which not all engines serve.
    fn try_read(&self, page: PageNo, offset: usize, to: &mut [u8]) -> usize;

    /// Writes bytes in the same way.
    fn try_write(&self, page: PageNo, offset: usize, from: &[u8]) -> usize;
}
