//! Collect and unmap: selected pages are claimed, and taken out of the mapping.

use super::{Copied, Hands, Item, MigrateError, Migrated, Migration, Origin, Select, Unmapped};
use crate::addr::{DeviceAddr, DevicePage, Home, PageData, PageNo, PageRange};
use crate::claims::{Run, Single};
use crate::device::Owner;
use crate::entry::State;
use crate::frames::{BLOCK, first_slot};
use crate::memory_type::MemoryType;
use crate::mmu::{Mmu, Stop};
use crate::space::Space;
use std::marker::PhantomData;

/// What to migrate: the arguments of [`Space::migrate_vma`].
#[derive(Clone, Copy, Debug)]
pub struct MigrateVma {
    /// The pages.
    pub pages: PageRange,
    /// Which kinds of them.
    pub select: Select,
    /// Of pages on devices: only this owner's. `None`: anybody's.
    pub owner: Option<Owner>,
    /// A device page on which the caller holds a reference because it serves a fault on it. The
    /// migration knows about that one reference, and still succeeds (R3).
    pub fault_page: Option<DeviceAddr>,
}

/// How much of a block of the pool is filled.
struct Filling {
    block: u32,
    filled: usize,
}

impl<M: Mmu> Space<M> {
    /// Begins to migrate pages of a range: claims and unmaps what is selected.
    ///
    /// The core knows pages, not mappings: whoever calls it sees to it that the program has access to
    /// all of the range.
    ///
    /// # Errors
    /// [`MigrateError::NotManaged`].
    pub fn migrate_vma(
        &self,
        args: &MigrateVma,
    ) -> Result<Migration<'_, M, Unmapped>, MigrateError> {
        let (pages, all) = (args.pages, self.range());
        if pages.start < all.start || pages.end() > all.end() {
            return Err(MigrateError::NotManaged);
        }
        let mut hands = self.hands(args.fault_page);
        let mut filling = None;
        let mut at = pages.start;
        while at < pages.end() {
            let most = (pages.end().0 - at.0) as usize;
            at = at.plus(hands.collect_some(at, most, args, &mut filling));
        }
        Ok(hands.begun())
    }

    /// Begins to migrate `len` pages of `device` from `first` on, wherever they are mapped (R8). Pages
    /// that are free, or that no entry of the space names, are not selected.
    ///
    /// # Errors
    /// [`MigrateError::NoSuchPage`], [`MigrateError::DoesNotMigrate`].
    pub fn migrate_device_range(
        &self,
        device: u8,
        first: DevicePage,
        len: usize,
    ) -> Result<Migration<'_, M, Unmapped>, MigrateError> {
        let memory = self.find_device(device).ok_or(MigrateError::NoSuchPage)?;
        let end = (first.0 as usize).checked_add(len);
        if end.is_none_or(|end| end > memory.capacity()) {
            return Err(MigrateError::NoSuchPage);
        }
        if !memory.memory_type().migrates() {
            return Err(MigrateError::DoesNotMigrate);
        }
        Ok(self.migrate_device_pages(device, (0..len).map(|i| first.plus(i))))
    }

    /// Begins to migrate the given pages of `device`.
    pub(crate) fn migrate_device_pages(
        &self,
        device: u8,
        pages: impl Iterator<Item = DevicePage>,
    ) -> Migration<'_, M, Unmapped> {
        let mut hands = self.hands(None);
        for page in pages {
            hands.collect_device_page(DeviceAddr { device, page });
        }
        hands.begun()
    }

    /// Migrates one page of memory that the CPU maps to RAM: the form that a long-term pin needs, and
    /// the handling of failing memory.
    ///
    /// # Errors
    /// [`MigrateError`]; the page is where it was.
    pub fn migrate_device_coherent_page(&self, at: DeviceAddr) -> Result<(), MigrateError> {
        let memory = self.find_device(at.device);
        let memory = memory.ok_or(MigrateError::NoSuchPage)?;
        if memory.memory_type() != MemoryType::Coherent {
            return Err(MigrateError::DoesNotMigrate);
        }
        let mut migration = self.migrate_device_range(at.device, at.page, 1)?;
        migration.to_system();
        match migration.copy().pages().finalize() {
            Migrated { migrated: 1, .. } => Ok(()),
            _ => Err(MigrateError::Busy),
        }
    }

    fn hands(&self, fault_page: Option<DeviceAddr>) -> Hands<'_, M> {
        Hands {
            space: self,
            items: Vec::new(),
            fault_page,
            blocks: Vec::new(),
            buffers: Vec::new(),
            fences: Vec::new(),
            done: Migrated::default(),
            _pass: self.gate.enter_patiently(&self.mmu),
        }
    }
}

impl<'a, M: Mmu> Hands<'a, M> {
    fn begun(self) -> Migration<'a, M, Unmapped> {
        Migration {
            hands: self,
            phase: PhantomData,
        }
    }

    fn add(&mut self, claimed: Single<'a, M>, origin: Origin<'a, M>) {
        self.items.push(Item {
            claimed,
            origin,
            migrate: true,
            to: None,
            copied: Copied::No,
        });
    }

    /// Whether nobody but the page's entry, this migration and the fault that it serves holds a
    /// device page (R7). The caller has one reference.
    pub(super) fn is_ours_alone(&self, at: DeviceAddr, count: u16) -> bool {
        let fault = u16::from(self.fault_page == Some(at));
        count <= 2 + fault
    }

    /// Collects pages from `at` on, at most `most`; returns how many were dealt with.
    fn collect_some(
        &mut self,
        at: PageNo,
        most: usize,
        args: &MigrateVma,
        filling: &mut Option<Filling>,
    ) -> usize {
        let space = self.space;
        let state = space.entries.state(at);
        let system = args.select.contains(Select::SYSTEM);
        match state {
            State::None if system => {
                if let Some(claimed) = Single::claim(space, at, |state| state == State::None) {
                    self.add(claimed, Origin::Hole);
                }
            }
            State::Limbo(slot) if system => {
                let same = |now| now == State::Limbo(slot);
                if let Some(claimed) = Single::claim(space, at, same) {
                    self.add(claimed, Origin::Frame(space.pool.claim_limbo(slot)));
                }
            }
            State::System {
                duplicate: Some(_), ..
            } if system => {
                if let Some(claimed) = Single::claim(space, at, |now| now == state) {
                    space.give_duplicate_up(claimed);
                    return 0;
                }
            }
            State::System { .. } if system => return self.take_system(at, most, filling),
            State::Private(on) | State::Coherent(on) if self.selects(on, args) => {
                self.collect_device_page(on);
            }
            _ => {}
        }
        1
    }

    fn selects(&self, at: DeviceAddr, args: &MigrateVma) -> bool {
        let kind = match self.space.device(at.device).memory_type() {
            MemoryType::Private => Select::DEVICE_PRIVATE,
            MemoryType::Coherent => Select::DEVICE_COHERENT,
            MemoryType::Generic | MemoryType::FsDax | MemoryType::PeerToPeer => return false,
        };
        args.select.contains(kind) && self.space.is_owned_by(at.device, args.owner)
    }

    /// Takes a run of pages in RAM out of the mapping; returns how many were dealt with.
    fn take_system(&mut self, at: PageNo, most: usize, filling: &mut Option<Filling>) -> usize {
        let space = self.space;
        if filling
            .as_ref()
            .is_none_or(|filling| filling.filled == BLOCK)
        {
            *filling = space.take_block().map(|block| Filling { block, filled: 0 });
            self.blocks
                .extend(filling.as_ref().map(|filling| filling.block));
        }
        // Without a slot to take it to, the page stays.
        let Some(filling) = filling else { return 1 };
        let plain = |_, state| {
            matches!(
                state,
                State::System {
                    duplicate: None,
                    ..
                }
            )
        };
        let mut run = Run::collect(space, at, most.min(BLOCK - filling.filled), plain);
        let (mut dealt, mut unshared) = (0, false);
        while run.pages().len > 0 {
            let pages = run.pages();
            let first = first_slot(filling.block).plus(filling.filled);
            let progress = space.mmu.take(pages, Home::Pool(first));
            space.pool.moved_in(first, pages.start, progress.pages);
            filling.filled += progress.pages;
            for i in 0..progress.pages {
                let claimed = run.pop().expect("as many as were taken");
                let frame = space.pool.claim_limbo(first.plus(i));
                self.add(claimed, Origin::Frame(frame));
            }
            dealt += progress.pages;
            match progress.stop {
                None => {}
                Some(Stop::Busy) if !unshared => {
                    // Shared after a fork, most likely.
                    space.mmu.unshare(run.pages());
                    unshared = true;
                }
                Some(stop) => {
                    let odd = run.pop().expect("what stopped the call");
                    self.take_odd(odd, stop);
                    dealt += 1;
                    unshared = false;
                }
            }
        }
        dealt.max(1)
    }

    /// A page that cannot be moved, because of `stop`.
    fn take_odd(&mut self, claimed: Single<'a, M>, stop: Stop) {
        let space = self.space;
        match stop {
            Stop::Protected => self.take_bytes(claimed),
            Stop::Busy => {
                space.stats().busy_pages.add(1);
            }
            // Dropped behind our back: it reads as zero from now on.
            Stop::Absent => {
                let coherent = claimed.was().device_page();
                claimed.settle(State::None);
                match coherent {
                    Some(at) => space.put_page(at),
                    None => space.pool.uncharge(1, space.stats()),
                }
            }
            _ => {}
        }
    }

    /// A page of a range that is not writable cannot be moved, but nobody can change it either: it is
    /// read and dropped. The protection must not change meanwhile.
    fn take_bytes(&mut self, claimed: Single<'a, M>) {
        let space = self.space;
        let Some(_fixed) = space.protection.hold() else {
            return;
        };
        let page = claimed.page();
        let mut data = Box::new(PageData::ZERO);
        if space.mmu.is_writable(page) || !space.mmu.peek(page, &mut data) {
            return;
        }
        space.mmu.discard(PageRange::new(page, 1));
        let charged = matches!(claimed.was(), State::System { .. });
        if let State::Coherent(at) = claimed.was() {
            // Its frame is gone, and it with it.
            space.put_page(at);
        }
        self.add(claimed, Origin::Bytes { data, charged });
    }

    /// Claims the page whose entry names `at`, and takes its frame home where it is mapped.
    fn collect_device_page(&mut self, at: DeviceAddr) {
        let space = self.space;
        let memory = space.device(at.device);
        let Some(page) = memory.owner(at.page) else {
            return;
        };
        // The owner may have changed meanwhile; the claim looks again.
        let names_it = |state: State| state.device_page() == Some(at);
        let Some(claimed) = Single::claim(space, page, names_it) else {
            return;
        };
        let held = memory.get(at.page);
        let held = held.expect("an entry names a device page that is in use (R1)");
        if matches!(claimed.was(), State::System { .. }) {
            // The bytes are in RAM: there is nothing to move, only the duplicate to give up.
            held.end(space.device_stats(at.device));
            space.give_duplicate_up(claimed);
            self.done.migrated += 1;
            return;
        }
        if !self.is_ours_alone(at, held.count()) {
            held.end(space.device_stats(at.device));
            space.stats().busy_pages.add(1);
            return;
        }
        if matches!(claimed.was(), State::Coherent(_))
            && let Some(stop) = self.take_home(page, at)
        {
            held.end(space.device_stats(at.device));
            self.take_odd(claimed, stop);
            return;
        }
        self.add(claimed, Origin::Device { at, held });
    }

    /// Takes the frame of a mapped device page home; says what is in the way.
    fn take_home(&self, page: PageNo, at: DeviceAddr) -> Option<Stop> {
        let (mmu, one) = (&self.space.mmu, PageRange::new(page, 1));
        let stop = mmu.take(one, Home::Arena(at)).stop;
        if stop != Some(Stop::Busy) {
            return stop;
        }
        mmu.unshare(one);
        mmu.take(one, Home::Arena(at)).stop
    }
}
