//! Migration: claimed runs of pages, and the named phases that they go through.
//!
//! | phase | to a device | to RAM, on a fault |
//! | --- | --- | --- |
//! | collect | `Run::collect`: claim mapped pages | claim pages on a device |
//! | unmap | `Mmu::take`: the frames are in the pool | nothing is mapped |
//! | | the pages settle as Limbo; a touch ends the migration here | |
//! | copy | claim again, copy the frame to a device page | copy the device page to memory |
//! | install | the entry names the device page | `Mmu::copy` or `Mmu::put` |
//! | finalize | the frame is free | the device page is free |
//!
//! Limbo splits the way out in two, so that the claim of a page is never held across both the
//! unmapping of a batch and the copies of its pages: a fault never waits for more than one copy.
//!
//! Migration is best effort page by page (R5, R7): what cannot be claimed, taken or stored stays
//! what it was. Whatever a `Run` has not settled when it is dropped, it restores.

use crate::addr::{PageNo, PageRange};
use crate::entry::{Claim, State};
use crate::frames::BLOCK;
use crate::mmu::Mmu;
use crate::space::Space;

/// Claimed pages in one contiguous run, ended from the front.
pub(crate) struct Run<'a, M: Mmu> {
    space: &'a Space<M>,
    claims: [Option<Claim>; BLOCK],
    start: PageNo,
    done: usize,
    len: usize,
}

impl<'a, M: Mmu> Run<'a, M> {
    /// Claims up to `most` pages from `start` on, as long as `select` agrees (it is given the
    /// page's place in the run and its state) and nobody else has them.
    pub(crate) fn collect(
        space: &'a Space<M>,
        start: PageNo,
        most: usize,
        select: impl Fn(usize, State) -> bool,
    ) -> Self {
        let mut run = Self {
            space,
            claims: [const { None }; BLOCK],
            start,
            done: 0,
            len: 0,
        };
        let room = (space.range().end().0 - start.0) as usize;
        while run.len < most.min(room).min(BLOCK) {
            let page = start.plus(run.len);
            let seen = space.entries.load(page);
            if seen.state() == State::Migrating || !select(run.len, seen.state()) {
                break;
            }
            let Some(claim) = space.entries.claim(page, seen) else {
                break;
            };
            run.claims[run.len] = Some(claim);
            run.len += 1;
        }
        run
    }

    /// The pages still claimed.
    pub(crate) fn pages(&self) -> PageRange {
        PageRange::new(self.start.plus(self.done), self.len - self.done)
    }

    /// What the first page still claimed was.
    pub(crate) fn first(&self) -> Option<State> {
        self.claims.get(self.done)?.as_ref().map(Claim::was)
    }

    /// What the page at place `i` among those still claimed was.
    pub(crate) fn was(&self, i: usize) -> State {
        self.claims[self.done + i]
            .as_ref()
            .expect("a claimed page")
            .was()
    }

    /// The first `pages` still claimed now are `state`.
    pub(crate) fn settle(&mut self, pages: usize, state: impl Fn(usize) -> State) {
        for i in 0..pages {
            let claim = self.claims[self.done].take().expect("a claimed page");
            debug_assert_eq!(claim.page(), self.start.plus(self.done));
            self.space.entries.settle(claim, state(i), &self.space.mmu);
            self.done += 1;
        }
    }

    /// Restores all but the first `pages` still claimed.
    pub(crate) fn truncate(&mut self, pages: usize) {
        while self.len - self.done > pages {
            self.len -= 1;
            let claim = self.claims[self.len].take().expect("a claimed page");
            self.space.entries.restore(claim, &self.space.mmu);
        }
    }
}

impl<M: Mmu> Drop for Run<'_, M> {
    fn drop(&mut self) {
        self.truncate(0);
    }
}
