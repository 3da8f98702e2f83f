//! Collect and unmap: selected pages are claimed, and taken out of the mapping.

use super::{Copied, Hands, Item, MigrateError, Migrated, Migration, Origin, Select, Unmapped};
use crate::addr::{DeviceAddr, DevicePage, Home, PageData, PageNo, PageRange};
use crate::claims::{Run, Single};
use crate::device::Owner;
use crate::entry::{State, Word};
use crate::frames::{BLOCK, first_slot};
use crate::gate::Pass;
use crate::memory_type::MemoryType;
use crate::mirror::Event;
use crate::mmu::{Mmu, Stop};
use crate::pagemap::Held;
use crate::protection::Fixed;
use crate::space::Space;
use std::collections::VecDeque;
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
    /// Of pages on devices: not those of this one, which is where the rest is to go.
    pub except: Option<u8>,
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
        let pages = args.pages;
        if !self.range().covers(pages) {
            return Err(MigrateError::NotManaged);
        }
        let mut hands = self.hands(self.pass()?, args.fault_page);
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
        let pages: Vec<_> = (0..len).map(|i| first.plus(i)).collect();
        Ok(self.migrate_device_pages(self.pass()?, device, &pages))
    }

    /// Begins to migrate the given pages of `device`, in ascending order.
    pub(crate) fn migrate_device_pages<'a>(
        &'a self,
        pass: Pass<'a, M>,
        device: u8,
        pages: &[DevicePage],
    ) -> Migration<'a, M, Unmapped> {
        let mut hands = self.hands(pass, None);
        for run in pages.chunk_by(|a, b| a.plus(1) == *b) {
            let mut next = 0;
            while next < run.len() {
                let at = DeviceAddr {
                    device,
                    page: run[next],
                };
                next += hands.collect_device_pages(at, None, run.len() - next);
            }
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

    /// A pass of the gate for a migration.
    pub(crate) fn pass(&self) -> Result<Pass<'_, M>, MigrateError> {
        Ok(self.gate.enter_soon(&self.mmu)?)
    }

    fn hands<'a>(&'a self, pass: Pass<'a, M>, fault_page: Option<DeviceAddr>) -> Hands<'a, M> {
        Hands {
            space: self,
            items: Vec::new(),
            fault_page,
            spared: PageRange::EMPTY,
            unmapped: false,
            blocks: Vec::new(),
            buffers: Vec::new(),
            fences: Vec::new(),
            missed: Vec::new(),
            done: Migrated::default(),
            pass,
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

    /// A page that would be selected stays, because somebody holds it or there is no way to take it.
    fn leave_out(&mut self) {
        self.done.left += 1;
    }

    /// A page is in other hands, so that nobody can say what it is.
    fn miss(&mut self, page: PageNo) {
        self.done.left += 1;
        self.missed.push(page);
    }

    /// A page that would be selected could not be claimed.
    fn not_claimed(&mut self, page: PageNo) {
        if self.space.is_pinned(page) {
            self.leave_out();
        } else {
            self.miss(page);
        }
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
        let claim = || Single::claim(space, at, |now| now == state);
        match state {
            State::None if system => match claim() {
                // It may have been let go of since the caller has looked at the range.
                Some(claimed) if space.mmu.manages(at) => self.add(claimed, Origin::Hole),
                Some(_) => {}
                None => self.not_claimed(at),
            },
            State::Limbo(slot) if system => match claim() {
                Some(claimed) => self.add(claimed, Origin::Frame(space.pool.claim_limbo(slot))),
                None => self.not_claimed(at),
            },
            State::System {
                duplicate: Some(_), ..
            } if system => match claim() {
                Some(claimed) => {
                    space.give_duplicate_up(claimed);
                    return 0;
                }
                None => self.not_claimed(at),
            },
            State::System { .. } if system => return self.take_system(at, most, filling),
            State::Exclusive { .. } if system => self.leave_out(),
            State::Private(on) | State::Coherent(on) if self.selects(on, args) => {
                return self.collect_device_pages(on, Some(at), most);
            }
            State::Migrating => self.miss(at),
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
        args.select.contains(kind)
            && args.except != Some(at.device)
            && self.space.is_owned_by(at.device, args.owner)
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
        let Some(filling) = filling else {
            // Without a slot to take it to, the page stays.
            self.leave_out();
            return 1;
        };
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
        if run.pages().len == 0 {
            self.not_claimed(at);
            return 1;
        }
        space.notify(run.pages(), Event::Migrate);
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
        dealt
    }

    /// A page that cannot be moved, because of `stop`.
    fn take_odd(&mut self, claimed: Single<'a, M>, stop: Stop) {
        let space = self.space;
        match stop {
            Stop::Protected => self.take_bytes(claimed),
            Stop::Busy => {
                space.stats().busy_pages.add(1);
                self.leave_out();
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
            _ => self.leave_out(),
        }
    }

    /// A page of a range that is not writable cannot be moved, but nobody can change it either: it is
    /// read and dropped. The protection must not change meanwhile.
    fn take_bytes(&mut self, claimed: Single<'a, M>) {
        let space = self.space;
        let Some(held) = space.protection.hold() else {
            return self.leave_out();
        };
        let page = claimed.page();
        let one = PageRange::new(page, 1);
        let mut data = Box::new(PageData::ZERO);
        match space.read_fixed(&held, page, &mut data) {
            Fixed::Absent => return self.take_odd(claimed, Stop::Absent),
            Fixed::Leave => return self.leave_out(),
            Fixed::Read => {}
        }
        space.mmu.discard(one);
        let charged = matches!(claimed.was(), State::System { .. });
        if let State::Coherent(at) = claimed.was() {
            // Its frame is gone, and it with it.
            space.put_page(at);
        }
        self.add(claimed, Origin::Bytes { data, charged });
    }

    /// Claims the page whose entry names `at`, and those beside it that lie beside it on the device
    /// too, at most `most`; takes home the frames of those that are mapped. Returns how many were dealt
    /// with.
    fn collect_device_pages(
        &mut self,
        at: DeviceAddr,
        expected: Option<PageNo>,
        most: usize,
    ) -> usize {
        let space = self.space;
        let memory = space.device(at.device);
        let owner = memory.owner(at.page);
        let page = match expected {
            // The device page was freed meanwhile, and may be another page's now.
            Some(expected) if owner != Some(expected) => {
                self.miss(expected);
                return 1;
            }
            _ => match owner {
                Some(page) => page,
                None => return 1,
            },
        };
        // The owner may have changed meanwhile; the claim looks again.
        match space.entries.state(page) {
            State::System {
                duplicate: Some(now),
                ..
            } if now == at => {
                // The bytes are in RAM: there is nothing to move, only the duplicate to give up.
                let names_it = |state: State| state.device_page() == Some(at);
                match Single::claim_in_place(space, page, names_it) {
                    Some(claimed) => {
                        space.give_duplicate_up(claimed);
                        self.done.migrated += 1;
                    }
                    None => self.miss(page),
                }
                1
            }
            State::Coherent(now) if now == at => self.collect_mapped(page, at, most),
            State::Private(now) if now == at => {
                match Single::claim(space, page, |state| state == State::Private(at)) {
                    None => self.not_claimed(page),
                    Some(claimed) => match self.hold_alone(at) {
                        None => self.leave_out(),
                        Some(held) => {
                            space.notify(PageRange::new(page, 1), Event::Migrate);
                            self.add(claimed, Origin::Device { at, held });
                        }
                    },
                }
                1
            }
            now => {
                if expected.is_some() || now == State::Migrating {
                    self.miss(page);
                }
                1
            }
        }
    }

    /// A reference on a device page whose entry is claimed, unless others hold it (R7).
    fn hold_alone(&self, at: DeviceAddr) -> Option<Held<'a, M::Table>> {
        let space = self.space;
        let held = space.device(at.device).get(at.page);
        let held = held.expect("an entry names a device page that is in use (R1)");
        if self.is_ours_alone(at, held.count()) {
            return Some(held);
        }
        held.end(space.device_stats(at.device));
        space.stats().busy_pages.add(1);
        None
    }

    /// A mapped device page that is shared since a fork: a copy of its frame goes home, if it is another
    /// process's too.
    fn collect_shared(&mut self, page: PageNo, at: DeviceAddr) -> usize {
        let space = self.space;
        let is_it = |claimed: &Single<'_, M>| claimed.was() == State::Coherent(at);
        let Some(claimed) = Single::claim_shared(space, page).filter(is_it) else {
            self.not_claimed(page);
            return 1;
        };
        let Some(held) = self.hold_alone(at) else {
            self.leave_out();
            return 1;
        };
        if space.is_ours_alone(page) {
            // From now on it is a page like others, and is looked at again.
            held.end(space.device_stats(at.device));
            space.mmu.untrack(page);
            claimed.settle(State::Coherent(at));
            return 0;
        }
        space.notify(PageRange::new(page, 1), Event::Migrate);
        if space.copy_home(page, at) {
            self.add(claimed, Origin::Device { at, held });
        } else {
            held.end(space.device_stats(at.device));
            self.leave_out();
        }
        1
    }

    /// Takes home the frames of a run of mapped device pages.
    fn collect_mapped(&mut self, page: PageNo, first: DeviceAddr, most: usize) -> usize {
        let space = self.space;
        if space.entries.load(page).is_shared() {
            return self.collect_shared(page, first);
        }
        let in_line =
            |i, seen: Word| seen.state() == State::Coherent(first.plus(i)) && !seen.is_shared();
        let mut run = Run::collect_if(space, page, most.min(BLOCK), in_line);
        let mut held = VecDeque::new();
        while held.len() < run.pages().len {
            match self.hold_alone(first.plus(held.len())) {
                Some(reference) => held.push_back(reference),
                None => break,
            }
        }
        if held.is_empty() {
            match run.pages().len {
                0 => self.not_claimed(page),
                // What another holds is dealt with, and stays.
                _ => self.leave_out(),
            }
            return 1;
        }
        let dealt = held.len();
        run.truncate(held.len());
        space.notify(run.pages(), Event::Migrate);
        let mut unshared = false;
        while run.pages().len > 0 {
            let pages = run.pages();
            let at = first.plus((pages.start.0 - page.0) as usize);
            let progress = space.mmu.take(pages, Home::Arena(at));
            for i in 0..progress.pages {
                let claimed = run.pop().expect("as many as were taken");
                let held = held.pop_front().expect("one for each");
                let at = at.plus(i);
                self.add(claimed, Origin::Device { at, held });
            }
            match progress.stop {
                None => {}
                Some(Stop::Busy) if !unshared => {
                    // Shared after a fork, most likely.
                    space.mmu.unshare(run.pages());
                    unshared = true;
                }
                Some(stop) => {
                    let odd = run.pop().expect("what stopped the call");
                    let held = held.pop_front().expect("one for each");
                    held.end(space.device_stats(first.device));
                    self.take_odd(odd, stop);
                    unshared = false;
                }
            }
        }
        dealt
    }
}
