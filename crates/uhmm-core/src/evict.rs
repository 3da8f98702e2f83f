//! Eviction, by device page alone (R8): chunks and devices are emptied, suspended and removed while
//! programs use their pages (R9).

use crate::addr::{DeviceAddr, DeviceId, DevicePage, PageNo};
use crate::entry::State;
use crate::events::Event;
use crate::fault::Scratch;
use crate::gate::Refused;
use crate::mirror::in_notifier;
use crate::mmu::Mmu;
use crate::pagemap::{AddChunkError, BATCH, DevPagemap, DeviceMemory};
use crate::reclaim::Step;
use crate::space::Space;
use std::fmt;
use std::time::{Duration, Instant};

/// What holds up the end of device memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StillInUse {
    /// Pages still in use.
    pub pages: usize,
    /// Of them: pages that belong to the space, and could not be brought to RAM yet.
    pub in_space: usize,
    /// Of them: pages of a type that does not migrate, which programs have mapped.
    pub mapped: usize,
    /// Of them: pages that somebody holds besides, or that a driver has.
    pub held: usize,
    /// Whether RAM was short.
    pub no_ram: bool,
}

impl fmt::Display for StillInUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pages are still on the device", self.pages)?;
        if self.held > 0 {
            write!(f, ", {} of them held by somebody", self.held)?;
        }
        if self.mapped > 0 {
            write!(
                f,
                ", {} of them mapped and of a type that does not migrate",
                self.mapped
            )?;
        }
        if self.no_ram && self.in_space > 0 {
            write!(f, ", for {} of them there is no RAM", self.in_space)?;
        }
        f.write_str("; try again with more time")
    }
}

impl std::error::Error for StillInUse {}

/// Why device memory was not removed, or emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoveError {
    /// The space has no such device, or the device no such chunk.
    NoSuchDevice,
    /// It was removed before.
    AlreadyRemoved,
    /// Called from a notifier, which must not call the space.
    InNotifier,
    /// The time was over first. Nothing new goes there, and another call goes on where this one ended.
    StillInUse(StillInUse),
}

impl fmt::Display for RemoveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchDevice => f.write_str("the space has no such device or chunk"),
            Self::AlreadyRemoved => f.write_str("it was removed before"),
            Self::InNotifier => f.write_str(Refused::IN_NOTIFIER),
            Self::StillInUse(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for RemoveError {}

/// What becomes of device memory once it is empty.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It may be filled again.
    Stay,
    /// It is killed, and released.
    End,
}

impl<M: Mmu> Space<M> {
    /// Removes a device while programs use its pages: kills its pagemaps, so that nothing new comes,
    /// then brings every page back to RAM, or onward to the other devices by way of RAM, until its
    /// last page is free (R2). It waits for RAM where there is none (R9). For internal threads, and
    /// for threads that touch no managed memory.
    ///
    /// # Errors
    /// [`RemoveError`]; [`RemoveError::StillInUse`] when `patience` is over first.
    pub fn remove_device(
        &self,
        device: u8,
        patience: Duration,
        scratch: &mut Scratch,
    ) -> Result<(), RemoveError> {
        let memory = self.to_be_emptied(device)?;
        let new = memory.kill();
        if !new && memory.chunks().all(DevPagemap::is_released) {
            return Err(RemoveError::AlreadyRemoved);
        }
        self.empty(device, None, Then::End, patience, scratch)?;
        self.events.tell(Event::DeviceRemoved(DeviceId(device)));
        Ok(())
    }

    /// Removes one chunk of a device's memory while programs use its pages. [`Space::add_chunk`]
    /// brings it back.
    ///
    /// # Errors
    /// As [`Space::remove_device`].
    pub fn remove_chunk(
        &self,
        device: u8,
        chunk: usize,
        patience: Duration,
        scratch: &mut Scratch,
    ) -> Result<(), RemoveError> {
        let memory = self.to_be_emptied(device)?;
        let pagemap = memory.chunk(chunk).ok_or(RemoveError::NoSuchDevice)?;
        if pagemap.is_released() {
            return Err(RemoveError::AlreadyRemoved);
        }
        self.empty(device, Some(chunk), Then::End, patience, scratch)
    }

    /// Adds a chunk to a device's memory: the next one, or one that was removed. Devices grow by
    /// themselves when they are full; this is for a driver whose memory comes and goes.
    ///
    /// # Errors
    /// [`AddChunkError`].
    pub fn add_chunk(&self, device: u8, chunk: usize) -> Result<(), AddChunkError> {
        let memory = self.find_device(device);
        let memory = memory.ok_or(AddChunkError::NoSuchChunk)?;
        let _pass = self.gate.enter_soon(&self.mmu)?;
        memory.add_chunk(chunk, &|len| self.mmu.table(len))?;
        Ok(())
    }

    /// Brings all pages of a device to RAM, and keeps the device: pages may come again at once.
    ///
    /// # Errors
    /// As [`Space::remove_device`].
    pub fn evict_device(
        &self,
        device: u8,
        patience: Duration,
        scratch: &mut Scratch,
    ) -> Result<(), RemoveError> {
        self.to_be_emptied(device)?;
        self.empty(device, None, Then::Stay, patience, scratch)
    }

    /// Brings all pages of a chunk to RAM, and keeps the chunk.
    ///
    /// # Errors
    /// As [`Space::remove_device`].
    pub fn evict_chunk(
        &self,
        device: u8,
        chunk: usize,
        patience: Duration,
        scratch: &mut Scratch,
    ) -> Result<(), RemoveError> {
        let memory = self.to_be_emptied(device)?;
        memory.chunk(chunk).ok_or(RemoveError::NoSuchDevice)?;
        self.empty(device, Some(chunk), Then::Stay, patience, scratch)
    }

    /// Brings all pages of a device to RAM, and lets none come until [`Space::resume_device`]: as a
    /// driver does before its device sleeps.
    ///
    /// # Errors
    /// As [`Space::remove_device`]; the device is suspended all the same, with pages left on it.
    pub fn suspend_device(
        &self,
        device: u8,
        patience: Duration,
        scratch: &mut Scratch,
    ) -> Result<(), RemoveError> {
        let memory = self.to_be_emptied(device)?;
        if memory.set_suspended(true) {
            self.events.tell(Event::DeviceSuspended(DeviceId(device)));
        }
        self.empty(device, None, Then::Stay, patience, scratch)
    }

    /// Ends a suspension. `false`: the device was not suspended, or there is none.
    pub fn resume_device(&self, device: u8) -> bool {
        let memory = self.find_device(device);
        let resumed = memory.is_some_and(|memory| memory.set_suspended(false));
        if resumed {
            self.events.tell(Event::DeviceResumed(DeviceId(device)));
        }
        resumed
    }

    /// A device, for who is to empty it.
    fn to_be_emptied(&self, device: u8) -> Result<&DeviceMemory<M::Table>, RemoveError> {
        if in_notifier() {
            return Err(RemoveError::InNotifier);
        }
        self.find_device(device).ok_or(RemoveError::NoSuchDevice)
    }

    /// Evicts until no page is in use, on a device or in one of its chunks, and releases what was killed.
    fn empty(
        &self,
        device: u8,
        chunk: Option<usize>,
        then: Then,
        patience: Duration,
        scratch: &mut Scratch,
    ) -> Result<(), RemoveError> {
        let start = Instant::now();
        let memory = self.device(device);
        let _emptying = memory.begin_emptying();
        self.events.tell(Event::eviction_began(device, chunk));
        let chunks = || {
            memory
                .chunks()
                .filter(move |pagemap| chunk.is_none_or(|i| memory.chunk_of(pagemap.first()) == i))
        };
        // A dying chunk is done with when it is released; a living one that stays, when it is empty.
        let is_done = |pagemap: &DevPagemap<_>| {
            pagemap.is_released() || then == Then::Stay && pagemap.is_alive()
        };
        loop {
            if then == Then::End {
                // Also what was just being added.
                chunks().for_each(|pagemap| memory.kill_chunk(pagemap));
            }
            let pages = chunks().flat_map(DevPagemap::used);
            let left_ram = self.evict_round(device, pages, start + patience);
            if let Some(_pass) = self.gate.enter(&self.mmu) {
                memory.free_buried(self.device_stats(device));
                chunks().for_each(|pagemap| self.release(device, pagemap));
            }
            let in_use = chunks().flat_map(DevPagemap::used).count();
            if in_use == 0 && chunks().all(is_done) {
                memory.count_stored(self.device_stats(device));
                self.events.tell(Event::eviction_ended(device, chunk, 0));
                return Ok(());
            }
            if start.elapsed() > patience {
                self.events
                    .tell(Event::eviction_ended(device, chunk, in_use));
                let pages = chunks().flat_map(DevPagemap::used);
                return Err(RemoveError::StillInUse(
                    self.who_holds(device, pages, left_ram),
                ));
            }
            if self.reclaim(scratch) != Step::Cleaned {
                self.nap();
            }
        }
    }

    /// Ends a chunk that was killed and has no page in use.
    fn release(&self, device: u8, pagemap: &DevPagemap<M::Table>) {
        let memory = self.device(device);
        memory.release(pagemap, || {
            if memory.memory_type().is_mapped() {
                let page = pagemap.first();
                self.mmu
                    .drop_arena(DeviceAddr { device, page }, pagemap.len());
            }
        });
    }

    /// Brings to RAM what can be brought now, and before `until`; returns whether RAM was short.
    fn evict_round(
        &self,
        device: u8,
        pages: impl Iterator<Item = DevicePage>,
        until: Instant,
    ) -> bool {
        if !self.device(device).memory_type().migrates() {
            return false;
        }
        let mut pages = pages.peekable();
        let mut short = false;
        while pages.peek().is_some() {
            // No more than there is RAM for is taken from the program at a time.
            let room = self.pool.available();
            if room == 0 {
                return true;
            }
            let batch = pages.by_ref().take(BATCH.min(room));
            let batch: Vec<DevicePage> = batch.collect();
            let Ok(pass) = self.pass() else {
                return short;
            };
            let mut migration = self.migrate_device_pages(pass, device, &batch);
            migration.to_system();
            let moved = migration.copy().pages().finalize();
            short |= moved.left > 0 && self.pool.available() == 0;
            if Instant::now() > until {
                break;
            }
        }
        short
    }

    fn who_holds(
        &self,
        device: u8,
        pages: impl Iterator<Item = DevicePage>,
        no_ram: bool,
    ) -> StillInUse {
        let memory = self.device(device);
        let mut found = StillInUse {
            no_ram,
            ..StillInUse::default()
        };
        for page in pages {
            found.pages += 1;
            let at = DeviceAddr { device, page };
            // An entry that has let go of the page leaves it to who else holds it.
            let names_it = |&owner: &PageNo| {
                let state = self.state(owner);
                state == State::Migrating || state.device_page() == Some(at)
            };
            match memory.owner(page).filter(names_it) {
                Some(owner) if memory.count(page) > 1 || self.is_pinned(owner) => found.held += 1,
                Some(_) if memory.memory_type().migrates() => found.in_space += 1,
                Some(_) => found.mapped += 1,
                None => found.held += 1,
            }
        }
        found
    }
}
