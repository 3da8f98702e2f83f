//! All pages of a range in one hand, around a call of the program's that changes the mapping itself.
//!
//! A program unmaps memory that is adopted, or maps something else over it, or drops what is in it, by a
//! call of the kernel's. Before the call nothing may be given up, since it may fail; after it nothing may be
//! touched, since the addresses may be another mapping's. So nobody may have a page in hand while it runs:
//! every page of the range is claimed, whatever it is, and no bytes are moved. Then the pages are nowhere
//! ([`Grip::forget`]), or the program's ([`Grip::hand_over`]), or, where the call has failed, what they were
//! (the drop). A touch meanwhile waits.
//!
//! Who grips waits for others' claims with claims in hand. They are waited for by nobody who has a claim:
//! all others take what they get (`claims.rs`), and who grips holds the lock on the regions. It is an
//! application thread, and calls no device.

use crate::addr::PageRange;
use crate::entry::{Claim, State};
use crate::error::RangeError;
use crate::hints::Hints;
use crate::mmu::Mmu;
use crate::ranges::Inside;
use crate::space::Space;

/// See the module's head.
#[must_use]
pub struct Grip<'a, M: Mmu> {
    space: &'a Space<M>,
    pages: PageRange,
    /// One for each page, in order, as far as it has come.
    claims: Vec<Claim>,
}

impl<M: Mmu> Inside<'_, M> {
    /// Claims all of `pages`. Devices have been told that they change, and are kept from looking
    /// ([`Inside::invalidating`]).
    ///
    /// # Errors
    /// [`RangeError::NotManaged`], [`RangeError::Pinned`], with nothing claimed.
    pub fn grip(&self, pages: PageRange) -> Result<Grip<'_, M>, RangeError> {
        self.check_unpinned(pages)?;
        let space = self.space;
        let mut grip = Grip {
            space,
            pages,
            claims: Vec::with_capacity(pages.len),
        };
        while grip.claims.len() < pages.len {
            let page = pages.start.plus(grip.claims.len());
            let seen = space.entries.load(page);
            match seen.state() {
                State::Migrating => space.entries.wait(page, &space.mmu),
                State::Exclusive { .. } => _ = space.end_exclusive(page),
                _ if seen.pins() > 0 => return Err(RangeError::Pinned),
                _ => grip.claims.extend(space.entries.claim(page, seen)),
            }
        }
        Ok(grip)
    }

    /// Whether all of `pages` are where the program has them, or nowhere, and nobody has any in hand: they
    /// may be [handed over](Grip::hand_over) as they are.
    pub fn are_home(&self, pages: PageRange) -> bool {
        let mut are = true;
        let entries = &self.space.entries;
        entries.for_each_used(pages, |_, word| {
            are &= is_home(word.state()) && word.pins() == 0;
        });
        are
    }
}

fn is_home(state: State) -> bool {
    let on_device = state.device_page().is_some();
    matches!(
        state,
        State::None | State::System { .. } | State::Poisoned if !on_device
    )
}

impl<M: Mmu> Grip<'_, M> {
    /// The pages.
    pub fn pages(&self) -> PageRange {
        self.pages
    }

    /// Ends it after a call that has dropped all that was there. Before the claims end, `let_go` may have
    /// the MMU forget the pages.
    pub fn forget(mut self, let_go: impl FnOnce(PageRange)) {
        let_go(self.pages);
        for claim in std::mem::take(&mut self.claims) {
            let was = claim.was();
            self.settle(claim, State::None);
            self.space.free_dropped(was);
        }
    }

    /// Ends it with pages that are all at home: they are the program's from now on, if the MMU agrees to let
    /// go of them. `false`: it does not, or they are not at home; they are what they were.
    pub fn hand_over(mut self, let_go: impl FnOnce(PageRange) -> bool) -> bool {
        let are_home = self.claims.iter().all(|claim| is_home(claim.was()));
        if !are_home || !let_go(self.pages) {
            return false;
        }
        self.space.hints.set(self.pages, Hints::NONE);
        let mut mapped = 0;
        for claim in std::mem::take(&mut self.claims) {
            mapped += usize::from(claim.was().is_mapped());
            self.settle(claim, State::None);
        }
        self.space.pool.uncharge(mapped, self.space.stats());
        true
    }

    fn settle(&self, claim: Claim, state: State) {
        let space = self.space;
        let now = || space.stamp();
        space.entries.settle(claim, state, now, &space.mmu);
    }
}

impl<M: Mmu> Drop for Grip<'_, M> {
    fn drop(&mut self) {
        for claim in self.claims.drain(..) {
            self.space.entries.restore(claim, &self.space.mmu);
        }
    }
}

impl<M: Mmu> Space<M> {
    /// Frees what a page had that is dropped, and nowhere. For application threads.
    pub(crate) fn free_dropped(&self, state: State) {
        match state {
            State::Private(at) | State::Coherent(at) => self.device(at.device).bury(at.page),
            State::Limbo(slot) => self.pool.put_free(self.pool.claim_limbo(slot)),
            State::System { duplicate, .. } => {
                self.pool.uncharge(1, self.stats());
                if let Some(at) = duplicate {
                    self.count_duplicates(-1);
                    self.device(at.device).bury(at.page);
                }
            }
            State::Exclusive { frame, .. } => self.drop_exclusive(frame),
            State::None | State::Migrating | State::Poisoned => {}
        }
    }
}
