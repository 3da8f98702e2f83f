//! What a fork does to address ranges, on both sides.

use super::{Memory, to_io};
use std::io;
use uhmm_core::addr::{PAGE_SIZE, PageNo, PageRange};
use uhmm_core::fault::{Access, Scratch};
use uhmm_core::regions::Attributes;
use uhmm_linux::mmu::SetupError;

impl Memory {
    /// Registers all that is ours with the MMU again, in the child of a fork; returns what that is.
    pub(crate) fn register_all(&self) -> Result<Vec<PageRange>, SetupError> {
        let regions = self
            .regions
            .try_lock()
            .unwrap_or_else(|_| unreachable!("the gate is closed"));
        let all = self.core.mmu().space_range();
        let foreign = regions
            .pieces(regions.range())
            .filter(|(_, attributes)| attributes.foreign);
        let (mut ours, mut next) = (Vec::new(), all.start);
        let end = PageRange::new(all.end(), 0);
        for hole in foreign.map(|(hole, _)| hole).chain([end]) {
            if next < hole.start {
                ours.push(PageRange::new(next, (hole.start.0 - next.0) as usize));
            }
            next = hole.end();
        }
        for &pages in &ours {
            self.core.mmu().register(pages)?;
        }
        Ok(ours)
    }

    /// Empties what a child is to find empty, and unmaps what it is not to find.
    pub(crate) fn wipe_in_child(&self) -> io::Result<()> {
        let mut call = self.call()?;
        let all = call.regions.range();
        let special = |attributes: &Attributes| attributes.wipe_on_fork || attributes.not_in_child;
        let pieces: Vec<_> = call
            .regions
            .pieces(all)
            .filter(|(_, attributes)| special(attributes) && !attributes.foreign)
            .collect();
        for (piece, attributes) in pieces {
            if attributes.not_in_child {
                self.clear(&mut call, piece)?;
            } else {
                call.inside.discard(piece).map_err(to_io)?;
            }
        }
        Ok(())
    }

    /// Brings in what a fork touches in the child before anybody serves faults there, as far as it
    /// is managed: this thread's stack and its descriptor (which lies on the stack that a program
    /// gives to a thread), and the C library's open files, whose locks it makes anew.
    pub(crate) fn hold_for_fork(&self) {
        /// Pages of the stack from here on downwards, and upwards.
        const DEPTH: usize = 16 * PAGE_SIZE;
        const HEIGHT: usize = 4 * PAGE_SIZE;
        /// The descriptor, and some of what stands beside it.
        const DESCRIPTOR: usize = PAGE_SIZE;
        let here = 0u8;
        let here = std::ptr::from_ref(&here) as usize;
        self.hold(here.saturating_sub(DEPTH), DEPTH + HEIGHT);
        // SAFETY: has no preconditions. The descriptor's address is what identifies a thread.
        let descriptor = unsafe { libc::pthread_self() } as usize;
        self.hold(descriptor - DESCRIPTOR, 2 * DESCRIPTOR);
        uhmm_linux::files::each_open_file(|address, len| self.hold(address, len));
    }

    /// Brings a page in that the program may write to, so that the write is no fault. In the signal engine
    /// the kernel does not wait for us, so we go to the resolver ourselves: the page is missing, or its
    /// writes are tracked.
    fn bring_in(&self, page: PageNo) {
        let mut scratch = None;
        for access in [Access::Write, Access::Tracked] {
            if self.core.mmu().touch(page) {
                return;
            }
            let scratch = scratch.get_or_insert_with(Scratch::default);
            self.core.fault_here(page, access, scratch);
        }
    }

    fn hold(&self, address: usize, len: usize) {
        let last = address.saturating_add(len - 1);
        for page in address / PAGE_SIZE..=last / PAGE_SIZE {
            if let Some(page) = self.core.mmu().page_at(page * PAGE_SIZE) {
                self.bring_in(page);
            }
        }
    }
}
