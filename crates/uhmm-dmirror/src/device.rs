//! A device: memory that pages can be in, in chunks of 256 MiB.
//!
//! There are two kinds. *Private* memory the CPU cannot map: the device keeps the bytes of its pages, in
//! blocks of 2 MiB that come into being when one of their pages is first stored. *Coherent* memory the CPU
//! maps: the core keeps the pages, and copies them; the device only knows which chunks it has.
//!
//! Two use a device. The space, by the trait: it stores pages, reads them back in page faults, and frees
//! them. And the driver, which works on pages by its page table ([`Device::read`], [`Device::write`]).
//! They never meet on a page: before a page leaves the device every table that has it is told, and waits
//! for whoever works by it. So the locks here are there because Rust wants them, and are always free: a
//! page's for its bytes, a chunk's for when the chunk comes and goes, which is when no page of it is in use.
//! A fork finds them free too, since it has emptied all tables before.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use uhmm::device::{
    CHUNK_PAGES, CopyInError, CopyOutError, DeviceInfo, DevicePage, MemoryType, Owner, PAGE_SIZE,
    PageData,
};

/// Pages in a block.
const BLOCK: usize = 512;

/// A page's bytes. Aligned to a cache line, since copies that are not take longer.
#[repr(align(64))]
struct Bytes([u8; PAGE_SIZE]);

type Block = Box<[Mutex<Bytes>]>;

/// The blocks of a chunk; none where the core keeps the pages.
type Chunk = Box<[OnceLock<Block>]>;

/// A device, in the hands of its driver and of the space.
#[derive(Clone)]
pub struct Device(Arc<Memory>);

struct Memory {
    kind: MemoryType,
    capacity_pages: u32,
    chunks: Box<[RwLock<Option<Chunk>>]>,
    stored_pages: AtomicU64,
}

impl Device {
    /// A device of `capacity_bytes`, rounded down to whole pages, that the CPU does not map.
    pub fn private(capacity_bytes: u64) -> Self {
        Self::new(MemoryType::Private, capacity_bytes)
    }

    /// A device of as many that the CPU maps.
    pub fn coherent(capacity_bytes: u64) -> Self {
        Self::new(MemoryType::Coherent, capacity_bytes)
    }

    fn new(kind: MemoryType, capacity_bytes: u64) -> Self {
        let pages = capacity_bytes / PAGE_SIZE as u64;
        let capacity_pages = u32::try_from(pages).unwrap_or(u32::MAX);
        let chunks = capacity_pages.div_ceil(CHUNK_PAGES);
        Self(Arc::new(Memory {
            kind,
            capacity_pages,
            chunks: (0..chunks).map(|_| RwLock::default()).collect(),
            stored_pages: AtomicU64::new(0),
        }))
    }

    /// Whether the CPU cannot map its memory.
    pub fn is_private(&self) -> bool {
        self.0.kind == MemoryType::Private
    }

    /// Whose the device's pages are: nobody else's. Its own place in memory is a name that no other has.
    pub fn owner(&self) -> Owner {
        Owner(Arc::as_ptr(&self.0) as u64)
    }

    /// How many chunks it can have.
    pub fn chunks(&self) -> usize {
        self.0.chunks.len()
    }

    /// The first chunk that it does not have.
    pub fn missing_chunk(&self) -> Option<usize> {
        (0..self.chunks()).find(|&index| self.with_chunk(index, |_| ()).is_none())
    }

    /// Reads a page of private memory, as the device itself does. `None`: there is nothing.
    pub fn read(&self, page: DevicePage, to: &mut [u8]) -> Option<()> {
        let read = |bytes: &mut Bytes| to.copy_from_slice(&bytes.0);
        self.with_page(page, false, read)
    }

    /// Writes a page of private memory, as the device itself does. `None`: there is nothing.
    pub fn write(&self, page: DevicePage, from: &[u8]) -> Option<()> {
        let write = |bytes: &mut Bytes| bytes.0.copy_from_slice(from);
        self.with_page(page, false, write)
    }

    fn with_chunk<R>(&self, index: usize, with: impl FnOnce(&Chunk) -> R) -> Option<R> {
        let chunk = self.0.chunks[index].read();
        let chunk = chunk.unwrap_or_else(PoisonError::into_inner);
        chunk.as_ref().map(with)
    }

    fn set_chunk(&self, first: DevicePage, chunk: Option<Chunk>) {
        let index = first.0 / CHUNK_PAGES;
        let place = self.0.chunks[index as usize].write();
        *place.unwrap_or_else(PoisonError::into_inner) = chunk;
    }

    /// Gives the bytes of a page to `with`; with `store`, also where nothing has been stored near it yet.
    fn with_page<R>(
        &self,
        page: DevicePage,
        store: bool,
        with: impl FnOnce(&mut Bytes) -> R,
    ) -> Option<R> {
        let in_chunk = (page.0 % CHUNK_PAGES) as usize;
        let in_block = |block: &Block| with(&mut lock(&block[in_chunk % BLOCK]));
        let block = |chunk: &Chunk| {
            let place = &chunk[in_chunk / BLOCK];
            match store {
                true => Some(in_block(place.get_or_init(new_block))),
                false => place.get().map(in_block),
            }
        };
        self.with_chunk((page.0 / CHUNK_PAGES) as usize, block)?
    }
}

fn new_block() -> Block {
    let page = |_| Mutex::new(Bytes([0; PAGE_SIZE]));
    (0..BLOCK).map(page).collect()
}

fn lock(page: &Mutex<Bytes>) -> MutexGuard<'_, Bytes> {
    page.lock().unwrap_or_else(PoisonError::into_inner)
}

impl uhmm::device::Device for Device {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new("dmirror", self.0.capacity_pages)
            .memory(self.0.kind)
            .owner(self.owner())
    }

    fn copy_in(&self, page: DevicePage, from: &PageData) -> Result<(), CopyInError> {
        let stored = self.with_page(page, true, |bytes| bytes.0.copy_from_slice(&from.0));
        stored.ok_or(CopyInError::Dead)?;
        self.0.stored_pages.fetch_add(1, Relaxed);
        Ok(())
    }

    /// This is the page fault: it allocates nothing, and both locks are free.
    fn copy_out(&self, page: DevicePage, to: &mut PageData) -> Result<(), CopyOutError> {
        // Never zeros for bytes that are not there.
        self.read(page, &mut to.0).ok_or(CopyOutError::Lost)
    }

    /// The block stays: the next page of that number is written over this one.
    fn free(&self, _page: DevicePage) {
        self.0.stored_pages.fetch_sub(1, Relaxed);
    }

    fn stored_bytes(&self) -> u64 {
        self.0.stored_pages.load(Relaxed) * PAGE_SIZE as u64
    }

    fn add_chunk(&self, first: DevicePage, pages: u32) -> bool {
        let blocks = match self.is_private() {
            true => (pages as usize).div_ceil(BLOCK),
            false => 0,
        };
        let chunk = (0..blocks).map(|_| OnceLock::new()).collect();
        self.set_chunk(first, Some(chunk));
        true
    }

    fn remove_chunk(&self, first: DevicePage, _pages: u32) {
        self.set_chunk(first, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uhmm::device::Device as _;

    #[test]
    fn conforms() {
        uhmm_testkit::conformance(|| Device::private(16 << 20));
        uhmm_testkit::conformance(|| Device::private(PAGE_SIZE as u64));
        uhmm_testkit::conformance(|| Device::coherent(16 << 20));
    }

    #[test]
    fn memory_comes_with_its_chunk_and_goes_with_it() {
        let device = Device::private(600 << 20);
        assert_eq!((device.chunks(), device.missing_chunk()), (3, Some(0)));
        let (first, page) = (DevicePage(CHUNK_PAGES), DevicePage(CHUNK_PAGES + 700));
        let (mut data, zeros) = (PageData([7; PAGE_SIZE]), PageData::ZERO);
        assert_eq!(device.copy_in(page, &data), Err(CopyInError::Dead));
        assert!(device.add_chunk(first, CHUNK_PAGES));
        assert_eq!(device.copy_out(page, &mut data), Err(CopyOutError::Lost));
        assert_eq!(device.copy_in(page, &data), Ok(()));
        assert_eq!(device.write(page, &zeros.0), Some(()));
        assert_eq!(device.copy_out(page, &mut data), Ok(()));
        assert_eq!(data.0, zeros.0);
        assert!(device.add_chunk(DevicePage(0), CHUNK_PAGES));
        assert_eq!(device.missing_chunk(), Some(2));
        device.free(page);
        device.remove_chunk(first, CHUNK_PAGES);
        assert_eq!(device.missing_chunk(), Some(1));
        assert_eq!(device.read(page, &mut data.0), None);
        assert_eq!(device.stored_bytes(), 0);
    }
}
