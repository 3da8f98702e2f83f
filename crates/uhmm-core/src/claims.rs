//! Claims of pages, held so that whatever is not settled is restored (R5, R7).
//!
//! A [`Run`] is neighbouring pages that are moved together, ended from the front; a [`Single`] is one
//! page. Both end their claims by `settle`, and by restoring what is left when they are dropped. A
//! restored page is exactly what it was, so whoever has changed its mapping must settle it instead.
//!
//! Pinned pages are not claimed (R7, R11), except by [`Single::claim_in_place`], for what leaves a page
//! where it is.

use crate::addr::{PageNo, PageRange};
use crate::entry::{Claim, State, Word};
use crate::frames::BLOCK;
use crate::mmu::Mmu;
use crate::space::Space;
use std::cell::OnceCell;

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
        Self::collect_if(space, start, most, |i, seen| select(i, seen.state()))
    }

    /// As [`Run::collect`], with all of their words.
    pub(crate) fn collect_if(
        space: &'a Space<M>,
        start: PageNo,
        most: usize,
        select: impl Fn(usize, Word) -> bool,
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
            if seen.state() == State::Migrating || seen.pins() > 0 || !select(run.len, seen) {
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

    /// Whether the page at place `i` among those still claimed was shared.
    pub(crate) fn was_shared(&self, i: usize) -> bool {
        self.claims[self.done + i]
            .as_ref()
            .is_some_and(Claim::was_shared)
    }

    /// The first `pages` still claimed now are `state`.
    pub(crate) fn settle(&mut self, pages: usize, state: impl Fn(usize) -> State) {
        let space = self.space;
        // Asked for once: it takes longer than all the rest.
        let stamp = OnceCell::new();
        for i in 0..pages {
            let claim = self.claims[self.done].take().expect("a claimed page");
            debug_assert_eq!(claim.page(), self.start.plus(self.done));
            let now = || *stamp.get_or_init(|| space.stamp());
            space.entries.settle(claim, state(i), now, &space.mmu);
            self.done += 1;
        }
    }

    /// Takes the first page still claimed out of the run.
    pub(crate) fn pop(&mut self) -> Option<Single<'a, M>> {
        let claim = self.claims.get_mut(self.done)?.take()?;
        self.done += 1;
        Some(Single {
            space: self.space,
            claim: Some(claim),
        })
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

/// One claimed page.
pub(crate) struct Single<'a, M: Mmu> {
    space: &'a Space<M>,
    /// `None` once it is settled.
    claim: Option<Claim>,
}

impl<'a, M: Mmu> Single<'a, M> {
    /// Claims `page` if `select` agrees to its state, it is not pinned, and nobody else has it.
    pub(crate) fn claim(
        space: &'a Space<M>,
        page: PageNo,
        select: impl Fn(State) -> bool,
    ) -> Option<Self> {
        Self::claim_if(space, page, |seen| seen.pins() == 0 && select(seen.state()))
    }

    /// Claims `page`, pinned or not, if `select` agrees to its state and nobody else has it: for
    /// something that leaves it where it is.
    pub(crate) fn claim_in_place(
        space: &'a Space<M>,
        page: PageNo,
        select: impl Fn(State) -> bool,
    ) -> Option<Self> {
        Self::claim_if(space, page, |seen| select(seen.state()))
    }

    /// Claims `page` if it is a coherent page that is shared since a fork, and nobody else has it.
    pub(crate) fn claim_shared(space: &'a Space<M>, page: PageNo) -> Option<Self> {
        Self::claim_if(space, page, Word::is_shared)
    }

    fn claim_if(space: &'a Space<M>, page: PageNo, select: impl Fn(Word) -> bool) -> Option<Self> {
        let seen = space.entries.load(page);
        if seen.state() == State::Migrating || !select(seen) {
            return None;
        }
        let claim = space.entries.claim(page, seen)?;
        Some(Self {
            space,
            claim: Some(claim),
        })
    }

    fn get(&self) -> &Claim {
        self.claim.as_ref().expect("a claimed page")
    }

    /// The page.
    pub(crate) fn page(&self) -> PageNo {
        self.get().page()
    }

    /// What it was.
    pub(crate) fn was(&self) -> State {
        self.get().was()
    }

    /// Whether it is pinned.
    pub(crate) fn is_pinned(&self) -> bool {
        self.get().pins() > 0
    }

    /// The page now is `state`.
    pub(crate) fn settle(mut self, state: State) {
        if let Some(claim) = self.claim.take() {
            let space = self.space;
            space
                .entries
                .settle(claim, state, || space.stamp(), &space.mmu);
        }
    }
}

impl<M: Mmu> Drop for Single<'_, M> {
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take() {
            self.space.entries.restore(claim, &self.space.mmu);
        }
    }
}
