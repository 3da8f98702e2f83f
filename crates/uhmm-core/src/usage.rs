//! Accounting: where the pages of a range are.
//!
//! Counted from the entries themselves, so that a page's charge follows it wherever it migrates, and
//! nothing can drift. The whole space has running counters besides: [`crate::stats`].

use crate::addr::PageRange;
use crate::entry::State;
use crate::mmu::Mmu;
use crate::space::Space;
use crate::stats::MAX_DEVICES;

/// Where the pages of a range are, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// In RAM: mapped, on their way out, or a device's alone for now.
    pub ram: usize,
    /// On each device, whether mapped or not. Duplicates of what is in RAM are not counted here.
    pub devices: [usize; MAX_DEVICES],
    /// Device pages that have the same bytes as a page in RAM.
    pub duplicates: usize,
    /// In flight at the moment of the look.
    pub migrating: usize,
    /// Lost.
    pub poisoned: usize,
}

impl<M: Mmu> Space<M> {
    /// Where the pages of `pages` are. Takes time in proportion to what was ever touched of them;
    /// pages that move meanwhile are counted where they are met.
    pub fn usage(&self, pages: PageRange) -> Usage {
        let mut usage = Usage::default();
        self.entries
            .for_each_used(pages, |_, word| match word.state() {
                State::None => {}
                State::System { duplicate, .. } => {
                    usage.ram += 1;
                    usage.duplicates += usize::from(duplicate.is_some());
                }
                State::Limbo(_) | State::Exclusive { .. } => usage.ram += 1,
                State::Private(at) | State::Coherent(at) => {
                    usage.devices[usize::from(at.device)] += 1;
                }
                State::Migrating => usage.migrating += 1,
                State::Poisoned => usage.poisoned += 1,
            });
        usage
    }
}
