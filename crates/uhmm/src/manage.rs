//! Memory of the program's own, managed on demand: for who does not know beforehand what a device will be
//! asked for.
//!
//! [`Space::adopt`] is for memory that somebody knows, has and gives back. Here a request names addresses,
//! and what can be adopted of them is, without a handle. It stays so until the program unmaps it, or it is
//! given back. Exactly what was named is adopted, and nothing beside it: that may be a thread's stack.
//!
//! There can be [`MAX_RANGES`](uhmm_linux::adopted::MAX_RANGES) ranges, of which neighbours are one. When
//! there are no more, one that is all in RAM is given back for the new one: nothing is lost by that but the
//! time to adopt it again.

use crate::adopt::{AdoptError, ReleaseError};
use crate::build::Space;
use crate::memory::{Call, adopted_attributes, pages_around};
use crate::range::{refused, whole_pages};
use std::ops::Range;
use std::time::Duration;
use uhmm_core::addr::{PAGE_SIZE, PageRange};
use uhmm_core::mirror::Event;
use uhmm_linux::adopt::Unfit;
use uhmm_linux::vmas::Vma;
use uhmm_linux::{own, stack};

impl Space {
    /// Manages what can be managed of `len` bytes at `address`, and is not yet; returns the parts that are,
    /// in order, neighbours as one. All of it must be mapped and readable. Left out is what cannot be
    /// adopted (shared memory, files, code, reserved huge pages, locked memory, memory that is not for
    /// children), and threads' stacks. Of a private mapping of a file, the pages that the program has written
    /// to are its own: while it has no thread but this one, they are made anonymous memory and managed, and
    /// later changes of the file are not seen there any more.
    ///
    /// What is managed this way stays so until it is unmapped ([`Memory::around_unmap`]), moved, or given
    /// back: by [`Space::unmanage`], with the space's end, or when as many ranges are adopted as can be and
    /// nothing of it is on a device.
    ///
    /// [`Memory::around_unmap`]: crate::memory::Memory::around_unmap
    ///
    /// # Errors
    /// [`AdoptError`]. [`Unfit::Hole`] or [`Unfit::NoAccess`] where some of it is not mapped or may not be
    /// read, and nothing has changed; with another one, some of it may be managed.
    ///
    /// # Safety
    /// As of [`Space::adopt`], for as long as it is managed.
    pub unsafe fn manage(
        &self,
        address: usize,
        len: usize,
    ) -> Result<Vec<Range<usize>>, AdoptError> {
        let range = whole_pages(address, len)?;
        let pages = pages_around(&range);
        // The C library may allocate for that.
        let own_stack = stack::range();
        let mut call = self.memory().call_soon().map_err(refused)?;
        let managed = managed(&call, pages);
        if managed == [range.clone()] {
            return Ok(managed);
        }
        let mmu = self.core().mmu();
        let vmas = mmu.mappings(&range)?;
        if !vmas.iter().all(|vma| vma.may('r')) {
            return Err(Unfit::NoAccess.into());
        }
        if !mmu.range().covers(pages) {
            return Err(Unfit::TooLarge.into());
        }
        let mut stacks = mmu.stacks_in(&vmas)?;
        stacks.extend(own_stack);
        let mut parts: Vec<(Range<usize>, &Vma)> = Vec::new();
        for vma in &vmas {
            if vma.unfit().is_none() {
                let left = without(&vma.range, &stacks);
                parts.extend(left.into_iter().map(|part| (part, vma)));
            } else if vma.may_have_own_copies() {
                let of_vma = pages_around(&vma.range);
                let _changing = call.inside.invalidating(of_vma, Event::Adopt);
                parts.extend(mmu.own_copies(vma).into_iter().map(|part| (part, vma)));
            }
        }
        let parts = parts.into_iter();
        let parts = parts
            .flat_map(|(part, vma)| own::outside(part).into_iter().map(move |part| (part, vma)));
        let parts: Vec<_> = parts.collect();
        self.check_room(parts.iter().map(|(part, _)| part))?;
        for (part, vma) in parts {
            self.take_part_in(&mut call, &part, vma, pages)?;
        }
        Ok(self::managed(&call, pages))
    }

    /// Adopts a part of a range that is asked for, all of which is `asked`.
    fn take_part_in(
        &self,
        call: &mut Call<'_>,
        part: &Range<usize>,
        vma: &Vma,
        asked: PageRange,
    ) -> Result<(), Unfit> {
        loop {
            let pieces = vec![(pages_around(part), adopted_attributes(vma, false))];
            match self.memory().take_in(call, part, pieces) {
                Err(Unfit::TooMany) if self.memory().make_slot(call, asked) => {}
                // Another's after all.
                Err(Unfit::Served) => return Ok(()),
                done => return done,
            }
        }
    }

    /// Whether there is room for what is present in `parts`, in RAM and on the devices.
    pub(crate) fn check_room<'a>(
        &self,
        parts: impl Iterator<Item = &'a Range<usize>>,
    ) -> Result<(), AdoptError> {
        let mmu = self.core().mmu();
        let pages = parts.map(|part| mmu.count_present(part.clone())).sum();
        let room = self.core().room();
        if pages > room {
            return Err(AdoptError::NoRoom { pages, room });
        }
        Ok(())
    }

    /// Gives back what is managed of a range by [`Space::manage`]: every page in RAM, at its address, whatever
    /// the budget says. What somebody has an [`Adopted`](crate::Adopted) for, and the space's own memory, is
    /// left as it is.
    ///
    /// # Errors
    /// [`ReleaseError`], when `patience` is over first: what has been given back by then is the program's.
    pub fn unmanage(
        &self,
        address: usize,
        len: usize,
        patience: Duration,
    ) -> Result<(), ReleaseError> {
        let mut pages = match len {
            // Which a page would be around, if it does not begin on one.
            0 => PageRange::EMPTY,
            _ => pages_around(&(address..address.saturating_add(len))),
        };
        self.off_managed_stack(|| self.memory().give_back(&mut pages, false, Some(patience)))
    }
}

/// The parts of `pages` that are mapped in the space, or adopted; neighbours are one.
fn managed(call: &Call<'_>, pages: PageRange) -> Vec<Range<usize>> {
    let mut parts: Vec<Range<usize>> = Vec::new();
    let readable = |protection| protection != 0;
    for (piece, is) in call.regions.pieces(pages) {
        if is.foreign || !readable(is.protection) {
            continue;
        }
        let range = piece.start.address()..piece.start.address() + piece.len * PAGE_SIZE;
        match parts.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => parts.push(range),
        }
    }
    parts
}

/// What is left of `range` without `holes`, in order.
fn without(range: &Range<usize>, holes: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut left = vec![range.clone()];
    for hole in holes.iter().filter(|hole| !hole.is_empty()) {
        let parts = |part: Range<usize>| {
            let within = |at: usize| at.clamp(part.start, part.end);
            [part.start..within(hole.start), within(hole.end)..part.end]
        };
        left = left.into_iter().flat_map(parts).collect();
        left.retain(|part| !part.is_empty());
    }
    left
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_hole_is_left_out() {
        let without = |hole| -> Vec<_> {
            let parts = super::without(&(10..20), &[hole]).into_iter();
            parts.map(|part| (part.start, part.end)).collect()
        };
        assert_eq!(without(0..0), [(10, 20)]);
        assert_eq!(without(0..10), [(10, 20)]);
        assert_eq!(without(20..30), [(10, 20)]);
        assert_eq!(without(5..15), [(15, 20)]);
        assert_eq!(without(15..25), [(10, 15)]);
        assert_eq!(without(12..15), [(10, 12), (15, 20)]);
        assert_eq!(without(0..30), []);
        let several = super::without(&(10..20), &[18..25, 12..13, 0..1, 15..15]);
        assert_eq!(several, [10..12, 13..18]);
    }
}
