//! What the program does to mappings of its own, outside of the space: unmap, protect, drop, move.
//!
//! Whoever takes over the program's system calls (a preload library) makes them by way of these. Each has
//! the kernel's call as a closure, and does around it what there is to do: devices that have some of the
//! range in a page table of their own are told, managed or not; and what is adopted of it is kept right.
//!
//! | call | devices | adopted pages |
//! | --- | --- | --- |
//! | unmap, or map something else there | told before, kept from looking until it is done | in hand meanwhile, then gone, wherever they were |
//! | protect | the same; what they have alone is the program's again | stay where they are, on devices too |
//! | discard | the same | in hand meanwhile, then empty |
//! | move | the same, of both ranges | are given back first, with what is in them; those in the way are gone |
//! | anything else | the same | are given back first, with what is in them |
//!
//! While the kernel's call runs, the regions are locked and the gate is passed, so that neither a fork nor
//! another of these comes between. It must not come back to the space. Pages in hand are waited for by who
//! touches them.
//!
//! A call that fails has changed what the kernel says: the books are compared with that, and agree.
//!
//! Pinned memory is not unmapped, dropped or moved (R11): the call is refused, where the kernel itself
//! would leave the frame to who has pinned it.

use super::adopted::pages_around;
use super::{Call, Memory, to_io};
use crate::adopt::IsAdopted;
use crate::device_memory::off_managed_stack;
use crate::memory::Protection;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::time::Duration;
use uhmm_core::addr::{PAGE_SIZE, PageNo, PageRange};
use uhmm_core::hints::Hints;
use uhmm_core::mirror::Event;

/// How long memory that is to move may take to be given back: a device that does not answer, or a page that
/// a driver holds, is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Calls on the program's own mappings. See the head of `memory/around.rs`.
///
/// Ranges are as the system calls have them: they begin on a page, or the kernel refuses them. None of
/// them may touch the space's own range ([`Memory::touches`]).
impl Memory {
    /// Runs `call`, which unmaps a range, or maps something else in its place.
    ///
    /// # Errors
    /// What `call` returns. Before it is called: `InvalidInput` ([`IsAdopted`] inside) where somebody has
    /// an [`Adopted`](crate::Adopted) there, `ResourceBusy` where adopted memory is pinned, `OutOfMemory`
    /// where too many ranges are adopted to make two of one, `WouldBlock` while a fork does not end,
    /// `Deadlock` in a notifier.
    ///
    /// # Safety
    /// `call` does no more than that, and does not come back to the space; nothing in the range is borrowed,
    /// as with `munmap`.
    pub unsafe fn around_unmap<R>(
        &self,
        address: usize,
        len: usize,
        call: impl FnOnce() -> io::Result<R>,
    ) -> io::Result<R> {
        let Some(pages) = self.outside(address, len)? else {
            return call();
        };
        let mut inside = self.call()?;
        let _changing = inside.inside.invalidating(pages, Event::Unmap);
        self.unmapping(&mut inside, pages, call)
    }

    /// Runs `call`, which changes what the program may do with a range.
    ///
    /// # Errors
    /// What `call` returns. Before it is called: `InvalidInput`, `WouldBlock`, `Deadlock`, as of
    /// [`Memory::around_unmap`].
    ///
    /// # Safety
    /// As of [`Memory::around_unmap`], with `mprotect`, and `protection` is what it sets.
    pub unsafe fn around_protect<R>(
        &self,
        address: usize,
        len: usize,
        protection: Protection,
        call: impl FnOnce() -> io::Result<R>,
    ) -> io::Result<R> {
        let Some(pages) = self.outside(address, len)? else {
            return call();
        };
        let mut inside = self.call()?;
        let done = self.core.change_protection(pages, call);
        match done {
            Ok(_) => inside
                .regions
                .change(pages, |is| is.protection = protection.bits()),
            Err(_) => self.compare(&mut inside, pages),
        }
        done
    }

    /// Runs `call`, which drops the contents of a range (`MADV_DONTNEED`).
    ///
    /// # Errors
    /// What `call` returns. Before it is called: `InvalidInput`, `ResourceBusy`, `WouldBlock`, `Deadlock`,
    /// as of [`Memory::around_unmap`].
    ///
    /// # Safety
    /// As of [`Memory::around_unmap`].
    pub unsafe fn around_discard<R>(
        &self,
        address: usize,
        len: usize,
        call: impl FnOnce() -> io::Result<R>,
    ) -> io::Result<R> {
        let Some(pages) = self.outside(address, len)? else {
            return call();
        };
        let inside = self.call()?;
        let _changing = inside.inside.invalidating(pages, Event::Clear);
        let grips = Self::grip(&inside, pages)?;
        let done = call();
        // With holes in the range all that is mapped is dropped, and then the kernel says so.
        let holes = |error: &io::Error| error.raw_os_error() == Some(libc::ENOMEM);
        if done.as_ref().err().is_none_or(holes) {
            grips.into_iter().for_each(|grip| grip.forget(|_| ()));
        }
        done
    }

    /// Runs `call`, which moves the mapping at `old`, or changes its size (`mremap`); to `new`, if it says
    /// where, in place of what is there.
    ///
    /// # Errors
    /// What `call` returns. Before it is called: as of [`Memory::around_unmap`], and `ResourceBusy` where
    /// adopted memory cannot be given back in time. What has been given back by then is the program's, with
    /// what is in it.
    ///
    /// # Safety
    /// As of [`Memory::around_unmap`], for both ranges.
    pub unsafe fn around_move<R>(
        &self,
        old: Range<usize>,
        new: Option<Range<usize>>,
        call: impl FnOnce() -> io::Result<R>,
    ) -> io::Result<R> {
        let old = self.outside(old.start, old.len())?;
        let new = match new {
            Some(new) => self.outside(new.start, new.len())?,
            None => None,
        };
        let old = old.unwrap_or(PageRange::EMPTY);
        let mut inside = self.without_adopted(old)?;
        let _changing = inside.inside.invalidating(old, Event::Unmap);
        let new = new.unwrap_or(PageRange::EMPTY);
        let _there = inside.inside.invalidating(new, Event::Unmap);
        self.unmapping(&mut inside, new, call)
    }

    /// Runs `call`, which makes of a range what cannot be managed: `mlock`, `MADV_DONTFORK`,
    /// `MADV_WIPEONFORK`, `pkey_mprotect`, or whatever is none of the others.
    ///
    /// # Errors
    /// As of [`Memory::around_move`].
    ///
    /// # Safety
    /// As of [`Memory::around_unmap`].
    pub unsafe fn around_other<R>(
        &self,
        address: usize,
        len: usize,
        call: impl FnOnce() -> io::Result<R>,
    ) -> io::Result<R> {
        // SAFETY: the caller's promise, of more than a move does.
        unsafe { self.around_move(address..address.saturating_add(len), None, call) }
    }

    /// Begins a call when nothing of `pages` is adopted (any more).
    fn without_adopted(&self, pages: PageRange) -> io::Result<Call<'_>> {
        loop {
            let inside = self.call()?;
            let adopted = Self::adopted(&inside, pages);
            if adopted.is_empty() {
                return Ok(inside);
            }
            if adopted.iter().any(|(_, is)| is.guarded) {
                return Err(is_adopted());
            }
            for (piece, _) in adopted {
                inside.inside.check_unpinned(piece).map_err(to_io)?;
            }
            drop(inside);
            let mut rest = pages;
            let give_back = || self.give_back(&mut rest, false, Some(PATIENCE));
            let given_back = off_managed_stack(self.core.mmu(), give_back);
            given_back.map_err(|error| io::Error::new(ErrorKind::ResourceBusy, error))?;
        }
    }

    /// Runs `call`, after which nothing of what was mapped in `pages` is there.
    fn unmapping<R>(
        &self,
        inside: &mut Call<'_>,
        pages: PageRange,
        call: impl FnOnce() -> io::Result<R>,
    ) -> io::Result<R> {
        let adopted = Self::adopted(inside, pages);
        if adopted.is_empty() {
            return call();
        }
        if adopted.iter().any(|(_, is)| is.guarded) {
            return Err(is_adopted());
        }
        self.cut(inside, pages)?;
        let grips = Self::grip(inside, pages)?;
        let done = call();
        if done.is_err() {
            drop(grips);
            self.compare(inside, pages);
            return done;
        }
        for grip in grips {
            drop_hints(inside, grip.pages());
            grip.forget(|pages| self.core.mmu().forget(pages));
        }
        inside.regions.release(pages);
        done
    }

    /// Makes the books say what the kernel says of the adopted memory in `pages`, after a call that has
    /// done a part of what it was to do.
    fn compare(&self, inside: &mut Call<'_>, pages: PageRange) {
        let mmu = self.core.mmu();
        for (piece, _) in Self::adopted(inside, pages) {
            let range = piece.start.address()..piece.end().address();
            // Without an answer they are taken to be as they were.
            let Ok(there) = mmu.served(&range) else {
                continue;
            };
            let mut next = piece.start;
            for vma in &there {
                let is = pages_around(&vma.range);
                self.is_gone(inside, next, is.start);
                let protection = vma.protection().bits();
                inside.regions.change(is, |of| of.protection = protection);
                next = is.end();
            }
            self.is_gone(inside, next, piece.end());
        }
    }

    /// Adopted pages from `start` to `end` are not mapped any more.
    fn is_gone(&self, inside: &mut Call<'_>, start: PageNo, end: PageNo) {
        let pages = PageRange::new(start, end.0.saturating_sub(start.0) as usize);
        if pages.len == 0 || self.cut(inside, pages).is_err() {
            return;
        }
        let mmu = self.core.mmu();
        if let Ok(grip) = inside.inside.grip(pages) {
            drop_hints(inside, pages);
            grip.forget(|pages| mmu.forget(pages));
            inside.regions.release(pages);
        }
    }

    /// The pages of a range that can be managed or mirrored; `None`: there are none, or the kernel will
    /// refuse it.
    fn outside(&self, address: usize, len: usize) -> io::Result<Option<PageRange>> {
        let all = self.core.range();
        let whole = address
            .checked_add(len)
            .filter(|_| address.is_multiple_of(PAGE_SIZE));
        let Some(end) = whole.filter(|&end| end > address) else {
            return Ok(None);
        };
        if self.touches(address, len) {
            return Err(ErrorKind::InvalidInput.into());
        }
        // Some calls take a range that goes past all that can be mapped, and do what there is to do before
        // they say so. And where the space has tables for itself alone, nothing else is adopted or mirrored.
        let (start, end) = (
            address.max(all.start.address()),
            end.min(all.end().address()),
        );
        Ok((start < end).then(|| pages_around(&(start..end))))
    }
}

/// Hints are gone with what they were given for.
fn drop_hints(inside: &Call<'_>, pages: PageRange) {
    let unhinted = inside.inside.set_hints(pages, Hints::NONE);
    debug_assert!(unhinted.is_ok(), "adopted pages: {unhinted:?}");
}

fn is_adopted() -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, IsAdopted)
}
