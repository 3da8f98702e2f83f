//! Policy walks: what goes over pages to reclaim, collapse, balance, lock or merge them sees ordinary
//! RAM, and never device memory, mapped or not (R13; `FOLL_LRU` and the LRU's own rule in Linux).

use crate::addr::{DeviceAddr, PageNo, PageRange};
use crate::claims::Single;
use crate::entry::State;
use crate::error::RangeError;
use crate::mmu::Mmu;
use crate::space::Space;
use std::fmt;

/// Why a page is not ordinary memory now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotOrdinary {
    /// The page is not managed by this space.
    NotManaged,
    /// Nothing is there, or it is on its way out, or a device's alone for now: a touch brings it.
    Missing,
    /// It is a device's, mapped or not. Touching it again would change nothing, or would bring home
    /// what its driver has put there.
    DevicePage(DeviceAddr),
    /// It is in flight; look again.
    InFlight,
    /// It is lost.
    Poisoned,
}

impl fmt::Display for NotOrdinary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotManaged => f.write_str("the page is not managed by this space"),
            Self::Missing => f.write_str("the page is not in RAM"),
            Self::DevicePage(at) => write!(f, "the page is on device {}", at.device),
            Self::InFlight => f.write_str("the page is being migrated; look again"),
            Self::Poisoned => f.write_str("the page is lost"),
        }
    }
}

impl std::error::Error for NotOrdinary {}

impl<M: Mmu> Space<M> {
    /// Looks a page up that has to be ordinary memory: mapped, and in RAM. Never faults.
    ///
    /// # Errors
    /// [`NotOrdinary`]: what it is instead.
    pub fn lookup_ordinary(&self, page: PageNo) -> Result<(), NotOrdinary> {
        if !self.range().contains(page) {
            return Err(NotOrdinary::NotManaged);
        }
        match self.entries.state(page) {
            State::System { .. } => Ok(()),
            State::None | State::Limbo(_) | State::Exclusive { .. } => Err(NotOrdinary::Missing),
            State::Private(at) | State::Coherent(at) => Err(NotOrdinary::DevicePage(at)),
            State::Migrating => Err(NotOrdinary::InFlight),
            State::Poisoned => Err(NotOrdinary::Poisoned),
        }
    }

    /// Calls `each` for every run of ordinary pages in `pages`: mapped, and in RAM. They are claimed
    /// meanwhile, so that none becomes a device's while a policy is applied to it; a touch is not held
    /// up. Pinned pages are passed over. Runs end at most every `most` pages, counted from address 0. Returns how many pages of
    /// devices were passed by. For internal threads, and for threads that touch no managed memory.
    ///
    /// This is the way for whatever applies a policy to pages; only reclaim has its own.
    ///
    /// # Errors
    /// [`RangeError::Forking`], [`RangeError::InNotifier`].
    pub fn walk_ordinary(
        &self,
        pages: PageRange,
        most: usize,
        mut each: impl FnMut(PageRange),
    ) -> Result<usize, RangeError> {
        let _pass = self.gate.enter_soon(&self.mmu)?;
        let mut passed = 0;
        let mut run = Vec::new();
        let mut end_run = |run: &mut Vec<Single<'_, M>>| {
            if let Some(first) = run.first() {
                each(PageRange::new(first.page(), run.len()));
            }
            run.clear();
        };
        self.entries.for_each_used(pages, |page, word| {
            let goes_on = run
                .last()
                .is_some_and(|last: &Single<'_, M>| last.page().plus(1) == page);
            if !goes_on || page.0.is_multiple_of(most as u64) {
                end_run(&mut run);
            }
            match word.state() {
                State::Private(_) | State::Coherent(_) => passed += 1,
                State::System { .. } => {
                    let is_system = |state| matches!(state, State::System { .. });
                    run.extend(Single::claim(self, page, is_system));
                }
                _ => {}
            }
        });
        end_run(&mut run);
        Ok(passed)
    }
}
