//! Device memory: a device's chunks, and their pages with reference counts.
//!
//! A device's memory is numbered pages, in chunks that come into being when they are needed
//! ([`chunk`]); each chunk is a pagemap with a lifetime of its own. One page allocator serves all
//! devices ([`buddy`]); calls into drivers are kept at arm's length ([`driver`]).
//!
//! Rules (DESIGN.md R1, R2, R4):
//! - allocating a page sets its count from zero to one and takes a reference on the pagemap;
//! - [`DeviceMemory::get`] succeeds only on a count above zero, so "is it free?" is one load;
//! - who takes the count to zero frees the page: tells the driver once, if the driver keeps bytes for
//!   it, then gives its number back to the allocator, then the pagemap's reference;
//! - a chunk that was killed hands out nothing; it is released when its references are zero.
//!
//! Application threads must not call into a device: a device may lock, and a thread whose own stack
//! is managed may fault while it holds that lock. They [`bury`](DeviceMemory::bury) instead, which
//! pushes the page to a list without a lock (one compare-and-swap; popped only whole, so there is no
//! ABA), and the reclaimer frees what is there.

mod buddy;
mod chunk;
mod driver;
mod error;
mod hand;

pub(crate) use chunk::DevPagemap;
pub use error::{AddChunkError, AllocError};

use crate::addr::{DeviceId, DevicePage, PageNo};
use crate::device::{CopyInError, Device, DeviceInfo, Standing};
use crate::entry::MAX_DEVICE_PAGES;
use crate::events::{Event, Events};
use crate::lock::Lock;
use crate::memory_type::MemoryType;
use crate::stats::DeviceStats;
use crate::stay::Stamp;
pub(crate) use buddy::MAX_ORDER;
use driver::Driver;
pub(crate) use driver::Started;
use hand::Hand;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*, fence};
use std::sync::{Arc, OnceLock};

/// The most pages that one copy into a device is given.
pub(crate) const BATCH: usize = crate::frames::BLOCK;

/// A device and its memory.
pub(crate) struct DeviceMemory<T> {
    driver: Driver,
    id: DeviceId,
    events: Arc<Events<T>>,
    capacity: usize,
    chunks: Box<[OnceLock<DevPagemap<T>>]>,
    /// The chunk in which a page was found last.
    cursor: AtomicUsize,
    /// Nothing comes any more; final.
    dying: AtomicBool,
    /// Nothing comes until the device is resumed.
    suspended: AtomicBool,
    /// How many callers are emptying it, or a part of it.
    emptying: AtomicUsize,
    /// The first dead page's number plus one, or zero.
    graveyard: AtomicU64,
    hand: Lock<Hand>,
}

impl<T: Deref<Target = [AtomicU64]>> DeviceMemory<T> {
    /// A device that is to be `id`, with its first chunk.
    pub(crate) fn new(
        device: Box<dyn Device>,
        id: DeviceId,
        events: &Arc<Events<T>>,
        table: &dyn Fn(usize) -> Option<T>,
    ) -> Option<Self> {
        let driver = Driver::new(device);
        let info = driver.info();
        let capacity = info.capacity_pages.min(MAX_DEVICE_PAGES) as usize;
        let chunks = capacity.div_ceil(info.chunk_pages as usize);
        let memory = Self {
            driver,
            id,
            events: Arc::clone(events),
            capacity,
            chunks: (0..chunks).map(|_| OnceLock::new()).collect(),
            cursor: AtomicUsize::new(0),
            dying: AtomicBool::new(false),
            suspended: AtomicBool::new(false),
            emptying: AtomicUsize::new(0),
            graveyard: AtomicU64::new(0),
            hand: Lock::default(),
        };
        match memory.add_chunk(0, table) {
            Ok(_) | Err(AddChunkError::Refused | AddChunkError::NoSuchChunk) => Some(memory),
            Err(_) => None,
        }
    }

    pub(crate) fn info(&self) -> &DeviceInfo {
        self.driver.info()
    }

    pub(crate) fn memory_type(&self) -> MemoryType {
        self.info().memory
    }

    /// Pages that the device can be asked to hold.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn driver(&self) -> &Driver {
        &self.driver
    }

    fn chunk_pages(&self) -> usize {
        self.info().chunk_pages as usize
    }

    /// Which chunk `page` lies in.
    pub(crate) fn chunk_of(&self, page: DevicePage) -> usize {
        page.0 as usize / self.chunk_pages()
    }

    /// The chunk that `page` lies in, if there is one.
    pub(crate) fn chunk(&self, index: usize) -> Option<&DevPagemap<T>> {
        self.chunks.get(index)?.get()
    }

    /// The chunks that there are or have been.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = &DevPagemap<T>> {
        self.chunks.iter().filter_map(OnceLock::get)
    }

    fn at(&self, page: DevicePage) -> &DevPagemap<T> {
        self.chunk(self.chunk_of(page))
            .expect("a page in use lies in a chunk")
    }

    /// Makes the chunk with this index, or begins it anew after it was removed.
    pub(crate) fn add_chunk(
        &self,
        index: usize,
        table: &dyn Fn(usize) -> Option<T>,
    ) -> Result<&DevPagemap<T>, AddChunkError> {
        let slot = self.chunks.get(index).ok_or(AddChunkError::NoSuchChunk)?;
        if self.is_dying() {
            return Err(AddChunkError::Removed);
        }
        let first = DevicePage((index * self.chunk_pages()) as u32);
        let len = self.chunk_pages().min(self.capacity - first.0 as usize);
        let chunk = match slot.get() {
            Some(chunk) => chunk,
            None => {
                let chunk = DevPagemap::new(first, len, table);
                let chunk = chunk.ok_or(AddChunkError::NoAddressSpace)?;
                slot.get_or_init(|| chunk)
            }
        };
        if !chunk.begin_adding() {
            return Err(AddChunkError::AlreadyThere);
        }
        let added = self.driver.add_chunk(first, len as u32);
        chunk.end_adding(added);
        if !added {
            return Err(AddChunkError::Refused);
        }
        // Either `kill` finds this chunk alive, or it is found dying here.
        fence(SeqCst);
        if self.is_dying() {
            chunk.kill();
            self.release(chunk, || ());
            return Err(AddChunkError::Removed);
        }
        self.tell_chunk(chunk, |device, chunk| Event::ChunkAdded { device, chunk });
        Ok(chunk)
    }

    /// Hands out `1 << order` pages, aligned to their number, each with one reference that is the
    /// caller's. Makes a chunk where none of those that there are has room.
    pub(crate) fn alloc(
        &self,
        order: u32,
        now: Stamp,
        stats: &DeviceStats,
        table: &dyn Fn(usize) -> Option<T>,
    ) -> Result<DevicePage, AllocError> {
        if self.is_dying() {
            return Err(AllocError::Removed);
        }
        if self.suspended.load(SeqCst) {
            return Err(AllocError::Suspended);
        }
        let page = loop {
            match self.alloc_in_chunks(order, now) {
                Some(page) => break page,
                None => self.grow(stats, table)?,
            }
        };
        stats.pages_peak.raise(stats.pages.add(1 << order));
        // Either who suspends the device finds the pages in use, or it is found suspended here.
        fence(SeqCst);
        if self.suspended.load(SeqCst) {
            (0..1 << order).for_each(|i| self.put(page.plus(i), stats));
            return Err(AllocError::Suspended);
        }
        Ok(page)
    }

    fn alloc_in_chunks(&self, order: u32, now: Stamp) -> Option<DevicePage> {
        let start = self.cursor.load(Relaxed);
        let len = self.chunks.len();
        let mut indices = (0..len).map(|step| (start + step) % len);
        let (index, page) =
            indices.find_map(|index| Some((index, self.chunk(index)?.alloc(order, now)?)))?;
        self.cursor.store(index, Relaxed);
        Some(page)
    }

    /// Frees what is buried, or adds the next chunk, or waits while somebody else is at one.
    fn grow(
        &self,
        stats: &DeviceStats,
        table: &dyn Fn(usize) -> Option<T>,
    ) -> Result<(), AllocError> {
        if self.free_buried(stats) > 0 {
            return Ok(());
        }
        if self.chunks().any(DevPagemap::is_changing) {
            std::thread::yield_now();
            return Ok(());
        }
        let is_new = |slot: &OnceLock<DevPagemap<T>>| slot.get().is_none_or(DevPagemap::is_new);
        let next = self.chunks.iter().position(is_new);
        match self.add_chunk(next.ok_or(AllocError::Full)?, table) {
            Ok(_) | Err(AddChunkError::AlreadyThere) => Ok(()),
            Err(AddChunkError::Removed) => Err(AllocError::Removed),
            Err(_) => Err(AllocError::Full),
        }
    }

    /// Hands out just `page`.
    pub(crate) fn alloc_at(&self, page: DevicePage, now: Stamp, stats: &DeviceStats) -> bool {
        let chunk = self.chunk(self.chunk_of(page));
        if !self.is_open() || !chunk.is_some_and(|chunk| chunk.alloc_at(page, now)) {
            return false;
        }
        stats.pages_peak.raise(stats.pages.add(1));
        // As in `alloc`.
        fence(SeqCst);
        if self.suspended.load(SeqCst) {
            self.put(page, stats);
            return false;
        }
        true
    }

    /// Brings the counters of stored bytes up to date.
    pub(crate) fn count_stored(&self, stats: &DeviceStats) {
        let stored = if self.memory_type() == MemoryType::Private {
            self.driver.stored_bytes()
        } else {
            (self.in_use() * crate::addr::PAGE_SIZE) as u64
        };
        stats.stored_bytes.set(stored);
        stats.stored_bytes_peak.raise(stored);
    }

    /// The page of the space whose entry holds `page`, if one does.
    pub(crate) fn owner(&self, page: DevicePage) -> Option<PageNo> {
        self.chunk(self.chunk_of(page))?.owner(page)
    }

    /// References on `page`; zero when it is free.
    pub(crate) fn count(&self, page: DevicePage) -> u16 {
        self.chunk(self.chunk_of(page))
            .map_or(0, |chunk| chunk.count(page))
    }

    /// The caller's reference on `page` becomes the entry's of `owner`, which the caller has claimed.
    pub(crate) fn set_owner(&self, page: DevicePage, owner: PageNo) {
        self.at(page).set_owner(page, owner);
    }

    /// The driver keeps bytes for `page` from now on, and is told when it is free.
    pub(crate) fn set_stored(&self, page: DevicePage) {
        self.at(page).set_stored(page, true);
    }

    /// The driver does not, after all: a copy that had begun has failed.
    pub(crate) fn clear_stored(&self, page: DevicePage) {
        self.at(page).set_stored(page, false);
    }

    /// The memory of `page`, which is in use, has failed: it is not used again once it is free.
    pub(crate) fn set_bad(&self, page: DevicePage) {
        self.at(page).set_bad(page);
    }

    /// Whether the memory of `page` has failed.
    pub(crate) fn is_bad(&self, page: DevicePage) -> bool {
        self.at(page).is_bad(page)
    }

    /// Somebody works with `page`, if it is in use: it is not cold.
    pub(crate) fn set_used(&self, page: DevicePage) {
        self.at(page).set_used(page);
    }

    /// Takes a reference on `page` unless it is free.
    pub(crate) fn get(&self, page: DevicePage) -> Option<Held<'_, T>> {
        let chunk = self.chunk(self.chunk_of(page))?;
        chunk.get(page).then_some(Held { memory: self, page })
    }

    /// Gives a reference on `page` back; the last one frees it. Not for application threads: see
    /// [`DeviceMemory::bury`].
    pub(crate) fn put(&self, page: DevicePage, stats: &DeviceStats) {
        if let Some(dead) = self.at(page).put(page, 0) {
            self.end(page, dead, stats);
        }
    }

    fn end(&self, page: DevicePage, dead: chunk::Dead, stats: &DeviceStats) {
        if dead.stored {
            self.driver.free(page);
        }
        stats.pages.sub(1);
        self.at(page).end(page, dead);
    }

    /// Like [`DeviceMemory::put`], for application threads: the last reference leaves the page to
    /// [`DeviceMemory::free_buried`].
    pub(crate) fn bury(&self, page: DevicePage) {
        let chunk = self.at(page);
        let mut head = self.graveyard.load(Acquire);
        // The link must be right before the page can be seen in the list, and only who takes the
        // count to zero may write it: so the count goes to zero with a mark, then the link is set.
        if chunk.put(page, chunk::NOBODY).is_none() {
            return;
        }
        loop {
            chunk.link(page, head);
            let me = u64::from(page.0) + 1;
            match self
                .graveyard
                .compare_exchange_weak(head, me, AcqRel, Acquire)
            {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Frees what [`DeviceMemory::bury`] left; returns how many pages.
    pub(crate) fn free_buried(&self, stats: &DeviceStats) -> usize {
        let mut next = self.graveyard.swap(0, AcqRel);
        let mut freed = 0;
        while next != 0 {
            let page = DevicePage((next - 1) as u32);
            let (after, dead) = self.at(page).unlink(page);
            next = after;
            self.end(page, dead, stats);
            freed += 1;
        }
        if freed > 0 {
            self.count_stored(stats);
        }
        freed
    }

    /// No page is handed out from now on. Returns whether that is new.
    pub(crate) fn kill(&self) -> bool {
        let new = !self.dying.swap(true, SeqCst);
        fence(SeqCst);
        self.chunks().for_each(|chunk| {
            chunk.kill();
        });
        new
    }

    /// No page of `chunk` is handed out from now on.
    pub(crate) fn kill_chunk(&self, chunk: &DevPagemap<T>) {
        chunk.kill();
    }

    pub(crate) fn is_dying(&self) -> bool {
        self.dying.load(SeqCst)
    }

    /// No page is handed out until `resume`. Returns whether that is new.
    pub(crate) fn set_suspended(&self, suspended: bool) -> bool {
        let new = self.suspended.swap(suspended, SeqCst) != suspended;
        fence(SeqCst);
        new
    }

    /// Until the answer is dropped, reclaim prefers other devices.
    pub(crate) fn begin_emptying(&self) -> Emptying<'_> {
        self.emptying.fetch_add(1, Relaxed);
        Emptying(&self.emptying)
    }

    pub(crate) fn is_being_emptied(&self) -> bool {
        self.emptying.load(Relaxed) > 0
    }

    /// Whether pages can be handed out.
    pub(crate) fn is_open(&self) -> bool {
        !self.is_dying() && !self.suspended.load(SeqCst)
    }

    pub(crate) fn standing(&self) -> Standing {
        if self.is_dying() {
            let removed = self.chunks().all(DevPagemap::is_released);
            return if removed {
                Standing::Removed
            } else {
                Standing::Ending
            };
        }
        if self.is_open() {
            Standing::Open
        } else {
            Standing::Suspended
        }
    }

    /// Whether `page`, which is in use, may stay: whether its chunk can still be given pages.
    pub(crate) fn keeps(&self, page: DevicePage) -> bool {
        self.is_open() && self.at(page).is_alive()
    }

    /// A copy has shown that the device has failed for good.
    pub(crate) fn heard(&self, error: CopyInError) {
        if error == CopyInError::Dead && self.kill() {
            self.events.tell(Event::DeviceFailed(self.id));
        }
    }

    /// Ends `chunk`, which was killed, if none of its pages is in use, and tells the driver, once
    /// `give_back` has given its memory back to the machine.
    pub(crate) fn release(&self, chunk: &DevPagemap<T>, give_back: impl FnOnce()) -> bool {
        if chunk.begin_release() {
            give_back();
            self.driver.remove_chunk(chunk.first(), chunk.len() as u32);
            chunk.end_release();
            self.tell_chunk(chunk, |device, chunk| Event::ChunkRemoved { device, chunk });
        }
        chunk.is_released()
    }

    fn tell_chunk(&self, chunk: &DevPagemap<T>, event: impl Fn(DeviceId, u32) -> Event) {
        let index = self.chunk_of(chunk.first()) as u32;
        self.events.tell(event(self.id, index));
    }

    /// Pages in use.
    pub(crate) fn in_use(&self) -> usize {
        self.chunks()
            .map(|chunk| chunk.references() - usize::from(chunk.is_alive()).min(chunk.references()))
            .sum()
    }

    /// The pages in use.
    pub(crate) fn used(&self) -> impl Iterator<Item = DevicePage> {
        self.chunks().flat_map(DevPagemap::used)
    }
}

/// See [`DeviceMemory::begin_emptying`].
pub(crate) struct Emptying<'a>(&'a AtomicUsize);

impl Drop for Emptying<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A reference on a device page (R3): while it lives the page is not free, and its pagemap stays.
pub(crate) struct Held<'a, T: Deref<Target = [AtomicU64]>> {
    memory: &'a DeviceMemory<T>,
    page: DevicePage,
}

impl<T: Deref<Target = [AtomicU64]>> Held<'_, T> {
    /// References on the page, this one included.
    pub(crate) fn count(&self) -> u16 {
        self.memory.count(self.page)
    }

    /// Gives the reference back, and the entry's with it: the page has left the device.
    pub(crate) fn leave(self, stats: &DeviceStats) {
        self.memory.put(self.page, stats);
        self.end(stats);
    }

    /// Gives the reference back.
    pub(crate) fn end(self, stats: &DeviceStats) {
        self.memory.put(self.page, stats);
    }
}
