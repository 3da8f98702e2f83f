//! The space: one managed address range with its pages, frames and devices.

use crate::addr::{DevicePage, PageNo, PageRange};
use crate::around::Around;
use crate::device::Device;
use crate::entry::{EntryTable, MAX_DEVICE_PAGES, State};
use crate::error::BuildError;
use crate::fork::ForkLog;
use crate::frames::FramePool;
use crate::gate::Gate;
use crate::mmu::Mmu;
use crate::pagemap::Pagemap;
use crate::protection::Protection;
use crate::reclaim::Reclaim;
use crate::stats::{DeviceStats, MAX_DEVICES, Stats};

/// The least budget, in pages: below it there is no room for a batch on its way out beside the
/// pages in use.
pub const MIN_BUDGET_PAGES: usize = 512;

/// One managed address space. All methods may be called from any thread.
///
/// Methods say which threads they are for. *Internal* threads (fault handlers, the reclaimer) never
/// touch managed memory and may wait for each other. *Application* threads may touch managed memory
/// at any moment, if only because their stack lies there: they take no lock that an internal thread
/// takes (R18).
pub struct Space<M: Mmu> {
    pub(crate) mmu: M,
    pub(crate) entries: EntryTable<M::Table>,
    pub(crate) pool: FramePool<M::Table>,
    pub(crate) devices: Vec<Pagemap<M::Table>>,
    pub(crate) gate: Gate,
    pub(crate) around: Around,
    pub(crate) fork_log: ForkLog,
    pub(crate) reclaim: Reclaim,
    pub(crate) protection: Protection,
}

impl<M: Mmu> Space<M> {
    /// A space over the pages of `range`, which `mmu` manages, that keeps at most `budget_pages`
    /// pages of RAM. Cold pages go to the first of `devices` that has room.
    ///
    /// # Errors
    /// A budget below [`MIN_BUDGET_PAGES`], too many devices, or no address space for the tables.
    pub fn new(
        mmu: M,
        range: PageRange,
        budget_pages: usize,
        devices: Vec<Box<dyn Device>>,
    ) -> Result<Self, BuildError> {
        if budget_pages < MIN_BUDGET_PAGES {
            return Err(BuildError::BudgetTooSmall {
                pages: budget_pages,
            });
        }
        if devices.len() > MAX_DEVICES {
            return Err(BuildError::TooManyDevices {
                devices: devices.len(),
            });
        }
        let table = |len| mmu.table(len);
        let entries = EntryTable::new(range, table).ok_or(BuildError::NoAddressSpace)?;
        let pool = FramePool::new(budget_pages, table).ok_or(BuildError::NoAddressSpace)?;
        let devices = devices
            .into_iter()
            .map(|device| Pagemap::new(device, MAX_DEVICE_PAGES, table))
            .collect::<Option<Vec<_>>>()
            .ok_or(BuildError::NoAddressSpace)?;
        mmu.stats()
            .ram_budget_bytes
            .set((budget_pages * crate::addr::PAGE_SIZE) as u64);
        Ok(Self {
            reclaim: Reclaim::new(range.start, budget_pages),
            mmu,
            entries,
            pool,
            devices,
            gate: Gate::default(),
            around: Around::default(),
            fork_log: ForkLog::default(),
            protection: Protection::default(),
        })
    }

    /// The MMU under this space.
    pub fn mmu(&self) -> &M {
        &self.mmu
    }

    /// The pages that the space manages.
    pub fn range(&self) -> PageRange {
        self.entries.range()
    }

    /// The space's counters.
    pub fn stats(&self) -> &Stats {
        self.mmu.stats()
    }

    pub(crate) fn device_stats(&self, device: u8) -> &DeviceStats {
        &self.stats().devices[usize::from(device)]
    }

    /// The state of a page now; out of date as soon as it is read. For tests and reports.
    pub fn state(&self, page: PageNo) -> State {
        self.entries.state(page)
    }

    /// Checks everything that must hold while nothing is in flight, and panics where it does not.
    /// For tests: it walks all that is in use, and nobody else may use the space meanwhile.
    ///
    /// - each device page in use has one reference, and the entry of its owner names it (R1);
    /// - each page in limbo has a frame of its own, in use and not free;
    /// - the charge is the number of pages mapped, in limbo and free.
    pub fn check_invariants(&self) {
        let (mut system, mut limbo, mut private) = (0, 0, vec![0; self.devices.len()]);
        self.entries
            .for_each_used(self.range(), |page, word| match word.state() {
                State::System { .. } => system += 1,
                State::Limbo(slot) => {
                    limbo += 1;
                    assert_eq!(self.pool.claim_limbo(slot).slot(), slot);
                }
                State::Private(at) => {
                    private[usize::from(at.device)] += 1;
                    let owner = self.devices[usize::from(at.device)].owner(at.page);
                    assert_eq!(
                        owner,
                        Some((page, 1)),
                        "{page:?} is on {at:?}, which says otherwise"
                    );
                }
                State::Migrating => panic!("{page:?} is in flight while nothing should be"),
                State::None | State::Poisoned => {}
            });
        assert_eq!(
            self.entries.mapped(),
            system,
            "the counts of mapped pages add up"
        );
        let in_limbo: u32 = self
            .pool
            .blocks()
            .map(|block| self.pool.in_limbo(block).count_ones())
            .sum();
        assert_eq!(in_limbo, limbo, "a frame is held by no page");
        assert_eq!(
            self.pool.charged(),
            system + limbo as usize + self.pool.free_frames(),
            "the charge is what exists"
        );
        for (device, held) in self.devices.iter().zip(private) {
            let used = (0..device.high_water())
                .filter(|&page| device.owner(DevicePage(page)).is_some())
                .count();
            assert_eq!(
                used, held,
                "device pages in use are those that entries name"
            );
        }
    }
}
