//! Adopted memory in the regions: how it comes in, how it is given back, and room for more of it.
//!
//! All of it is done with the regions locked, inside the gate: what the regions say is adopted is just
//! what the MMU serves, for requests, for the program's calls on its mappings and for forks alike.
//!
//! Memory is given back a few pages at a time, each step with the lock taken anew. A step may call a
//! device, whose methods need no lock of ours; it is done by who touches no managed memory.

use super::{Call, Memory};
use crate::adopt::ReleaseError;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::time::{Duration, Instant};
use uhmm_core::addr::{PAGE_SIZE, PageNo, PageRange};
use uhmm_core::error::RangeError;
use uhmm_core::fault::Scratch;
use uhmm_core::frames::BLOCK;
use uhmm_core::grip::Grip;
use uhmm_core::mirror::Event;
use uhmm_core::regions::{Adoption, Attributes};
use uhmm_linux::adopt::Unfit;
use uhmm_linux::mmu::LinuxMmu;

/// How long memory rests that cannot be given back now.
const REST: Duration = Duration::from_millis(1);

/// The pages that have a byte of `range`.
pub(crate) fn pages_around(range: &Range<usize>) -> PageRange {
    let first = PageNo::containing(range.start);
    let end = range.end.div_ceil(PAGE_SIZE);
    PageRange::new(first, end.saturating_sub(first.0 as usize))
}

/// What a step of giving back has come to.
enum Step {
    /// There is nothing (more) to give back.
    Nothing,
    /// The first page cannot be given back now.
    Waits,
    /// These were given back.
    Gone(PageRange, Adoption),
}

impl Memory {
    /// Has the space manage memory that fits, which is as `pieces` say.
    pub(crate) fn take_in(
        &self,
        call: &mut Call<'_>,
        range: &Range<usize>,
        pieces: Vec<(PageRange, Attributes)>,
    ) -> Result<(), Unfit> {
        let mmu = self.core.mmu();
        // Who has the pages in a table of its own has them as memory that stays where it is.
        let pages = pages_around(range);
        let _changing = call.inside.invalidating(pages, Event::Adopt);
        let coming = mmu.take_in(range)?;
        if let Err(unfit) = mmu.serve(range.clone()) {
            // What of it is registered may have been touched, but is not known yet: it is all in RAM.
            let is_over = || {
                let grip = call.inside.grip(coming.pages);
                grip.is_ok_and(|grip| grip.hand_over(|pages| mmu.let_go(pages)))
            };
            while !is_over() {
                std::thread::sleep(REST);
            }
            return Err(unfit);
        }
        call.inside.adopt(coming.pages);
        drop(coming);
        for (piece, attributes) in pieces {
            call.regions.adopt(piece, attributes);
        }
        Ok(())
    }

    /// Makes room for another range that is adopted, by giving back one that is all in RAM, has no handle
    /// and nothing of `keep`. `false`: there is none. Calls no device.
    pub(crate) fn make_slot(&self, call: &mut Call<'_>, keep: PageRange) -> bool {
        let mmu = self.core.mmu();
        mmu.adopted().into_iter().any(|pages| {
            let pieces: Vec<_> = call.regions.pieces(pages).collect();
            let is_free =
                |(_, is): &(PageRange, Attributes)| is.adopted.is_some_and(|is| !is.guarded);
            if pages.overlaps(keep) || !pieces.iter().all(is_free) || !call.inside.are_home(pages) {
                return false;
            }
            let _changing = call.inside.invalidating(pages, Event::Unmap);
            let grip = call.inside.grip(pages);
            if !grip.is_ok_and(|grip| grip.hand_over(|pages| mmu.let_go(pages))) {
                return false;
            }
            call.regions.release(pages);
            for (piece, is) in pieces {
                mmu.let_the_kernel_at(piece, is.adopted.is_some_and(|is| is.huge));
            }
            true
        })
    }

    /// Makes sure that what is adopted of `pages` can be taken out.
    ///
    /// # Errors
    /// `OutOfMemory`, as the kernel has it when there are too many mappings.
    pub(super) fn cut(&self, call: &mut Call<'_>, pages: PageRange) -> io::Result<()> {
        let mmu = self.core.mmu();
        // One that is before them, and goes past them, is made two by either; where there are two, each
        // is at an end of its own.
        let is_cut = || mmu.cut(pages.start);
        if is_cut() || self.make_slot(call, pages) && is_cut() {
            return Ok(());
        }
        Err(ErrorKind::OutOfMemory.into())
    }

    /// What is adopted of `pages`, in order.
    pub(super) fn adopted(call: &Call<'_>, pages: PageRange) -> Vec<(PageRange, Adoption)> {
        let pieces = call.regions.pieces(pages);
        pieces
            .filter_map(|(piece, is)| Some((piece, is.adopted?)))
            .collect()
    }

    /// Takes all of what is adopted of `pages` in hand.
    ///
    /// # Errors
    /// `ResourceBusy`: some of it is pinned.
    pub(super) fn grip<'a>(
        call: &'a Call<'_>,
        pages: PageRange,
    ) -> io::Result<Vec<Grip<'a, LinuxMmu>>> {
        let adopted = Self::adopted(call, pages);
        for (piece, _) in &adopted {
            call.inside.check_unpinned(*piece).map_err(super::to_io)?;
        }
        let start = Instant::now();
        // Who has pinned some since then looks at the regions afterwards, does not get to, and lets go.
        let grip = |(piece, _)| loop {
            match call.inside.grip(piece) {
                Err(RangeError::Pinned) if start.elapsed() < 2 * super::PATIENCE => {
                    std::thread::sleep(Duration::from_micros(100));
                }
                done => break done.map_err(super::to_io),
            }
        };
        adopted.into_iter().map(grip).collect()
    }

    /// Gives back what is adopted within `pages`, with a handle or without, from the front; `pages` are
    /// what is left. On a thread that touches no managed memory.
    ///
    /// # Errors
    /// [`ReleaseError`], when `patience` is over first.
    pub(crate) fn give_back(
        &self,
        pages: &mut PageRange,
        guarded: bool,
        patience: Option<Duration>,
    ) -> Result<(), ReleaseError> {
        let start = Instant::now();
        let mut scratch = Scratch::default();
        let mut gone = Vec::new();
        let done = loop {
            match self.give_some_back(*pages, guarded, &mut scratch) {
                Ok(Step::Nothing) => break Ok(()),
                Ok(Step::Gone(some, was)) => {
                    *pages = PageRange::new(some.end(), (pages.end().0 - some.end().0) as usize);
                    match gone.last_mut() {
                        Some((last, same))
                            if PageRange::end(*last) == some.start && *same == was =>
                        {
                            last.len += some.len;
                        }
                        _ => gone.push((some, was)),
                    }
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Deadlock => {
                    break Err(ReleaseError::InNotifier);
                }
                // A fork, or somebody who has the regions.
                Ok(Step::Waits) | Err(_) => {}
            }
            if patience.is_some_and(|patience| start.elapsed() > patience) {
                break Err(ReleaseError::StillAdopted(self.left_of(*pages, guarded)));
            }
            std::thread::sleep(REST);
        };
        for (pages, was) in gone {
            self.core.mmu().let_the_kernel_at(pages, was.huge);
        }
        done
    }

    /// Bytes of `pages` that are adopted.
    fn left_of(&self, pages: PageRange, guarded: bool) -> usize {
        let pieces = self.pieces(pages).unwrap_or_default();
        let is_one = |is: &Attributes| is.adopted.is_some_and(|is| is.guarded == guarded);
        let left = pieces.iter().filter(|(_, is)| is_one(is));
        left.map(|(piece, _)| piece.bytes()).sum()
    }

    fn give_some_back(
        &self,
        pages: PageRange,
        guarded: bool,
        scratch: &mut Scratch<'_>,
    ) -> io::Result<Step> {
        let mut call = self.call_soon()?;
        let mut adopted = Self::adopted(&call, pages).into_iter();
        let Some((piece, was)) = adopted.find(|(_, is)| is.guarded == guarded) else {
            return Ok(Step::Nothing);
        };
        if self.cut(&mut call, piece).is_err() {
            return Ok(Step::Waits);
        }
        let some = PageRange::new(piece.start, piece.len.min(BLOCK));
        let mut let_go = |pages| self.core.mmu().let_go(pages);
        let done = self.core.hand_back(some, scratch, &mut let_go);
        let done = PageRange::new(some.start, done.map_err(super::to_io)?);
        if done.len == 0 {
            return Ok(Step::Waits);
        }
        call.regions.release(done);
        Ok(Step::Gone(done, was))
    }
}
