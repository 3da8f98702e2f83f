//! A device that keeps plain copies of pages. It gains nothing; it shows, on little paper, what a
//! device has to do, and it is the measure for everything around devices.
//!
//! A page lives at its number, in a chunk of memory that comes into being when one of its pages
//! is first stored, and is used again from then on. The core never makes two calls for one page at
//! a time, so a page's lock is always free: it is there because Rust wants it.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use uhmm_core::addr::{DevicePage, PAGE_SIZE, PageData};
use uhmm_core::device::{CopyInError, CopyOutError, Device, DeviceInfo};
use uhmm_core::memory_type::MemoryType;

/// Pages in a chunk.
const CHUNK: usize = 256;

/// A page's bytes. Aligned to a cache line, since copies that are not take longer.
#[repr(align(64))]
struct Bytes([u8; PAGE_SIZE]);

type Chunk = Box<[Mutex<Bytes>]>;

/// Plain copies of pages in ordinary memory.
pub struct MirrorDevice {
    chunks: Box<[OnceLock<Chunk>]>,
    capacity_pages: u32,
    stored_pages: AtomicU64,
    memory: MemoryType,
}

impl MirrorDevice {
    /// A device that holds `capacity_bytes`, rounded down to whole pages, in memory that the CPU does
    /// not map.
    pub fn new(capacity_bytes: u64) -> Self {
        Self::with_memory(capacity_bytes, MemoryType::Private)
    }

    /// A device with memory of another type. What the CPU maps is in the core's hands: ordinary memory
    /// stands in for it, and the device itself has nothing to store.
    pub fn with_memory(capacity_bytes: u64, memory: MemoryType) -> Self {
        let pages = capacity_bytes / PAGE_SIZE as u64;
        let capacity_pages = u32::try_from(pages).unwrap_or(u32::MAX);
        let chunks = (capacity_pages as usize).div_ceil(CHUNK);
        Self {
            chunks: (0..chunks).map(|_| OnceLock::new()).collect(),
            capacity_pages,
            stored_pages: AtomicU64::new(0),
            memory,
        }
    }
}

/// The bytes of `page` in its chunk.
fn bytes(chunk: &Chunk, page: DevicePage) -> MutexGuard<'_, Bytes> {
    chunk[page.0 as usize % CHUNK]
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

impl Device for MirrorDevice {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new("mirror", self.capacity_pages).memory(self.memory)
    }

    fn copy_in(&self, page: DevicePage, from: &PageData) -> Result<(), CopyInError> {
        let chunk = self.chunks[page.0 as usize / CHUNK].get_or_init(|| {
            (0..CHUNK)
                .map(|_| Mutex::new(Bytes([0; PAGE_SIZE])))
                .collect()
        });
        bytes(chunk, page).0.copy_from_slice(&from.0);
        self.stored_pages.fetch_add(1, Relaxed);
        Ok(())
    }

    fn copy_out(&self, page: DevicePage, to: &mut PageData) -> Result<(), CopyOutError> {
        let chunk = self.chunks[page.0 as usize / CHUNK]
            .get()
            .ok_or(CopyOutError::Lost)?;
        to.0.copy_from_slice(&bytes(chunk, page).0);
        Ok(())
    }

    fn free(&self, _page: DevicePage) {
        self.stored_pages.fetch_sub(1, Relaxed);
    }

    fn stored_bytes(&self) -> u64 {
        self.stored_pages.load(Relaxed) * PAGE_SIZE as u64
    }
}
