//! The space: one managed address range with its pages, frames and devices.

use crate::addr::{DeviceId, PageNo, PageRange};
use crate::around::Around;
use crate::device::{Device, DeviceInfo, Standing};
use crate::entry::{EntryTable, MAX_DEVICE_PAGES, State};
use crate::error::BuildError;
use crate::events::{Event, Events};
use crate::fork::ForkLog;
use crate::frames::FramePool;
use crate::gate::Gate;
use crate::hints::{HintTable, Hints};
use crate::lock::Lock;
use crate::memory_type::MemoryType;
use crate::migrate::Buffers;
use crate::mirror::Notifiers;
use crate::mmu::Mmu;
use crate::pagemap::{DeviceMemory, MAX_ORDER};
use crate::protection::Protection;
use crate::reclaim::Reclaim;
use crate::stats::{DeviceStats, MAX_DEVICES, Stats};
use crate::stay::Stamp;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};

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
    /// In the order in which they were added; a place is never used again.
    devices: [OnceLock<DeviceMemory<M::Table>>; MAX_DEVICES],
    adding: Lock<()>,
    pub(crate) buffers: Buffers,
    /// Pages in RAM that have a duplicate on a device.
    pub(crate) duplicates: AtomicUsize,
    pub(crate) hints: HintTable<M::Table>,
    pub(crate) events: Arc<Events<M::Table>>,
    pub(crate) gate: Gate,
    pub(crate) around: Around,
    pub(crate) fork_log: ForkLog,
    pub(crate) reclaim: Reclaim,
    pub(crate) protection: Protection,
    pub(crate) notifiers: Notifiers,
    /// Pages that pins and devices keep out of reclaim's reach.
    pub(crate) kept: AtomicUsize,
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
        let hints = HintTable::new(range, table).ok_or(BuildError::NoAddressSpace)?;
        let events = Events::new(table).ok_or(BuildError::NoAddressSpace)?;
        mmu.stats()
            .ram_budget_bytes
            .set((budget_pages * crate::addr::PAGE_SIZE) as u64);
        let space = Self {
            reclaim: Reclaim::new(range, budget_pages),
            mmu,
            entries,
            pool,
            devices: [const { OnceLock::new() }; MAX_DEVICES],
            adding: Lock::new(()),
            buffers: Buffers::default(),
            duplicates: AtomicUsize::new(0),
            hints,
            events: Arc::new(events),
            gate: Gate::default(),
            around: Around::default(),
            fork_log: ForkLog::default(),
            protection: Protection::default(),
            notifiers: Notifiers::default(),
            kept: AtomicUsize::new(0),
        };
        for device in devices {
            space.add_device(device)?;
        }
        Ok(space)
    }

    /// About how many words the tables have of a space over `pages` pages: to see whether the address space
    /// has room for them.
    pub const fn table_words(pages: usize) -> usize {
        // An entry each, hints of 16 bits each, and counts for each 512 of them.
        pages + pages / 4 + pages / 128
    }

    /// Adds a device while the space is in use; returns its number. Devices are filled in the order
    /// in which they were added, and the number of one that was removed is not used again.
    ///
    /// # Errors
    /// [`BuildError::NoPlace`], [`BuildError::NoAddressSpace`], [`BuildError::Forking`], and what is
    /// wrong with the device itself: [`BuildError::ChunkPages`], [`BuildError::NoNode`].
    pub fn add_device(&self, device: Box<dyn Device>) -> Result<u8, BuildError> {
        let info = device.info();
        if info.chunk_pages < 1 << MAX_ORDER || !info.chunk_pages.is_power_of_two() {
            return Err(BuildError::ChunkPages {
                pages: info.chunk_pages,
            });
        }
        // A fork in the middle would leave the child with half a device.
        let _pass = self.gate.enter_soon(&self.mmu)?;
        let _one_at_a_time = self.adding.lock();
        let free = self.devices.iter().position(|slot| slot.get().is_none());
        let index = free.ok_or(BuildError::NoPlace)?;
        let id = DeviceId(index as u8);
        let memory = DeviceMemory::new(device, id, &self.events, &|len| self.mmu.table(len))
            .ok_or(BuildError::NoAddressSpace)?;
        let capacity = info.capacity_pages.min(MAX_DEVICE_PAGES);
        if info.memory.is_mapped() && !self.mmu.add_arena(index as u8, capacity, info.node) {
            // The driver has been told of its first chunk.
            memory.kill();
            memory.chunks().for_each(|chunk| {
                memory.release(chunk, || ());
            });
            return Err(match info.node {
                Some(node) => BuildError::NoNode { node },
                None => BuildError::NoAddressSpace,
            });
        }
        let added = self.devices[index].set(memory);
        debug_assert!(added.is_ok(), "the place was free, and is ours");
        self.events.tell(Event::DeviceAdded(id));
        Ok(index as u8)
    }

    /// The device that an entry names.
    pub(crate) fn device(&self, device: u8) -> &DeviceMemory<M::Table> {
        self.devices[usize::from(device)]
            .get()
            .expect("an entry names a device that was added")
    }

    /// The type of a device's memory; `None` when there is no such device.
    pub fn memory_type(&self, device: u8) -> Option<MemoryType> {
        Some(self.find_device(device)?.memory_type())
    }

    /// What a device is, and how it stands; `None` when there is no such device.
    pub fn device_info(&self, device: u8) -> Option<(&DeviceInfo, Standing)> {
        let memory = self.find_device(device)?;
        Some((memory.info(), memory.standing()))
    }

    /// Whether a device was removed, or has failed for good: nothing goes there any more.
    pub fn is_removed(&self, device: u8) -> bool {
        self.find_device(device).is_some_and(DeviceMemory::is_dying)
    }

    /// What the program wants of a page.
    pub fn hints(&self, page: PageNo) -> Hints {
        if self.range().contains(page) {
            self.hints.of(page)
        } else {
            Hints::NONE
        }
    }

    /// The device with this number, if there is one.
    pub(crate) fn find_device(&self, device: u8) -> Option<&DeviceMemory<M::Table>> {
        self.devices.get(usize::from(device))?.get()
    }

    /// All devices with their numbers, in order.
    pub(crate) fn devices(&self) -> impl Iterator<Item = (u8, &DeviceMemory<M::Table>)> {
        let slots = (0..).zip(&self.devices);
        slots.filter_map(|(i, slot)| Some((i, slot.get()?)))
    }

    /// The time now, to stamp pages with.
    pub(crate) fn stamp(&self) -> Stamp {
        Stamp::of(self.mmu.now())
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

    /// Whether a page is mapped now, whatever its entry says.
    pub(crate) fn is_present(&self, page: PageNo) -> bool {
        let mut present = false;
        let one = PageRange::new(page, 1);
        self.mmu.present(one, &mut |_| present = true);
        present
    }

    /// The state of a page now; out of date as soon as it is read. For tests and reports.
    pub fn state(&self, page: PageNo) -> State {
        self.entries.state(page)
    }
}
