//! Keeps a change of protection and an eviction that relies on it apart.
//!
//! A page that is not writable is evicted by reading, storing and dropping it, which is right only
//! while it stays so. Two flags, each set before the other side's is read (sequentially
//! consistent), so that one of the two always sees the other. The eviction gives way at once; the
//! application thread that changes a protection waits for it, and it is one page's work.

use crate::addr::{PageData, PageNo, PageRange};
use crate::mirror::Event;
use crate::mmu::Mmu;
use crate::space::Space;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

#[derive(Default)]
pub(crate) struct Protection {
    changing: AtomicUsize,
    evicting: AtomicUsize,
}

impl Protection {
    /// Holds the protection as it is, unless it is being changed.
    pub(crate) fn hold(&self) -> Option<Held<'_>> {
        self.evicting.fetch_add(1, SeqCst);
        let held = Held(self);
        (self.changing.load(SeqCst) == 0).then_some(held)
    }
}

pub(crate) struct Held<'a>(&'a Protection);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.evicting.fetch_sub(1, SeqCst);
    }
}

/// What a page of a range that is not writable was found to be.
pub(crate) enum Fixed {
    /// Nothing is there: it was dropped behind our back.
    Absent,
    /// It was read; nobody can change it while its protection is held.
    Read,
    /// It is writable after all, or cannot be read now: it stays.
    Leave,
}

impl<M: Mmu> Space<M> {
    /// Reads a claimed page that cannot be moved, because its range is not writable. It may be dropped
    /// afterwards, for as long as `_held` is.
    pub(crate) fn read_fixed(&self, _held: &Held<'_>, page: PageNo, to: &mut PageData) -> Fixed {
        if !self.is_present(page) {
            Fixed::Absent
        } else if self.mmu.is_writable(page) || !self.mmu.peek(page, to) {
            Fixed::Leave
        } else {
            Fixed::Read
        }
    }

    /// Runs `change`, which changes the protection of `pages`. Devices that have them in a page table of
    /// their own are told before, and what they have alone there is the program's again. From inside the
    /// gate.
    pub fn change_protection<R>(&self, pages: PageRange, change: impl FnOnce() -> R) -> R {
        let _changing = self.invalidating(pages, Event::Protect);
        self.end_exclusive_in(pages);
        self.protection.changing.fetch_add(1, SeqCst);
        while self.protection.evicting.load(SeqCst) > 0 {
            std::thread::yield_now();
        }
        let result = change();
        self.protection.changing.fetch_sub(1, SeqCst);
        result
    }
}
