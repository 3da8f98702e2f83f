//! Policy walks: what goes over pages to reclaim, collapse, balance, lock or merge them sees ordinary
//! RAM, and never device memory, mapped or not (R13; `FOLL_LRU` and the LRU's own rule in Linux).

use crate::addr::{DeviceAddr, PageNo, PageRange};
use crate::entry::State;
use crate::mmu::Mmu;
use crate::space::Space;
use std::fmt;

/// Why a page is not ordinary memory now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotOrdinary {
    /// The page is not managed by this space.
    NotManaged,
    /// Nothing is there, or it is on its way out: a touch brings it.
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
            State::None | State::Limbo(_) => Err(NotOrdinary::Missing),
            State::Private(at) | State::Coherent(at) => Err(NotOrdinary::DevicePage(at)),
            State::Migrating => Err(NotOrdinary::InFlight),
            State::Poisoned => Err(NotOrdinary::Poisoned),
        }
    }

    /// Calls `each` for every maximal run of ordinary pages in `pages`: mapped, and in RAM. The way
    /// for whatever applies a policy to pages. Returns how many pages of devices it has passed by.
    pub fn walk_ordinary(&self, pages: PageRange, mut each: impl FnMut(PageRange)) -> usize {
        let (mut run, mut passed) = (PageRange::new(pages.start, 0), 0);
        self.entries.for_each_used(pages, |page, word| {
            passed += usize::from(matches!(
                word.state(),
                State::Private(_) | State::Coherent(_)
            ));
            if !matches!(word.state(), State::System { .. }) {
                return;
            }
            if run.end() == page {
                run.len += 1;
                return;
            }
            if run.len > 0 {
                each(run);
            }
            run = PageRange::new(page, 1);
        });
        if run.len > 0 {
            each(run);
        }
        passed
    }
}
