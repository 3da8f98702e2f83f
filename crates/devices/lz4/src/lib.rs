//! A device of lz4-compressed memory: pages that are rarely touched take less of the same RAM.
//!
//! # Layout
//!
//! ```text
//! page number --> PageTable (pages.rs): 8 bytes and one bit a page
//!                    |
//!                    +-- one repeated u64: the value itself, and no memory besides
//!                    |
//!                    +-- a Place --> Store (store.rs): slabs of 32 KiB, cut into slots of one size
//!                                    compressed bytes, or 4096 plain ones if it hardly compresses
//! ```
//!
//! A slab that has become empty may serve any size next. Slabs are all that the capacity counts;
//! the page table takes 8 bytes more for each page number that was ever used.
//!
//! # Lock protocol
//!
//! - `copy_out` and `free` wait for nobody, so they are safe in the fault path, in a signal
//!   handler too: they take a slab's lock shared, and it is held exclusively only while the slab
//!   is empty; the rest is atomics.
//! - `copy_in` compresses with no lock held. The allocator's lock, which only `copy_in` and
//!   [`Lz4Device::trim`] take, covers the choice of a slot and nothing longer.
//! - That no two calls overlap on one page is the core's promise; so the words of a slot have one
//!   user at a time, and need no ordering of their own.
#![forbid(unsafe_code)]

mod lazy;
mod pages;
mod slab;
mod store;

use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};
use pages::{PageTable, Stored};
use slab::Place;
use store::Store;
use uhmm_core::addr::{DevicePage, PAGE_SIZE, PageData};
use uhmm_core::device::{CopyInError, CopyOutError, Device, DeviceInfo};

/// The most bytes that a page is stored compressed in: ten pages to a slab. What needs more is
/// stored as it is, eight to a slab: reading it then costs a quarter, and little room is lost.
const MAX_COMPRESSED: usize = 3264;

/// Page numbers beyond those that memory allows, for pages that take none.
const SPARE_PAGES: u64 = 1 << 16;

/// The most page numbers.
const MAX_PAGES: u64 = 1 << 28;

/// Compressed memory of bounded size. Costs next to nothing until it is used.
pub struct Lz4Device {
    info: DeviceInfo,
    pages: PageTable,
    store: Store,
}

impl Lz4Device {
    /// A store that takes at most `capacity_bytes` of memory for the pages in it, in whole slabs
    /// of 32 KiB.
    pub fn new(capacity_bytes: u64) -> Self {
        // The best that lz4 can do with a page is the smallest slot: 64 to a page.
        let best_case = capacity_bytes / slab::UNIT as u64;
        let capacity_pages = (best_case + SPARE_PAGES).min(MAX_PAGES) as u32;
        Self {
            info: DeviceInfo::new("lz4", capacity_pages),
            pages: PageTable::new(capacity_pages),
            store: Store::new(capacity_bytes),
        }
    }

    /// Bytes of slabs that the store holds, those kept empty for the next pages included.
    pub fn held_bytes(&self) -> u64 {
        self.store.held_bytes()
    }

    /// Gives the memory of all empty slabs back to the allocator. `copy_in` does so by and by, but
    /// it may be long until the next one. Not for the fault path.
    pub fn trim(&self) {
        self.store.trim();
    }

    fn store(&self, bytes: &[u8]) -> Result<Place, CopyInError> {
        self.store.insert(bytes).ok_or(CopyInError::Full)
    }
}

impl Device for Lz4Device {
    fn info(&self) -> DeviceInfo {
        self.info.clone()
    }

    fn copy_in(&self, page: DevicePage, from: &PageData) -> Result<(), CopyInError> {
        if let Some(value) = repeated_value(from) {
            self.pages.set(page, Stored::Same(value));
            return Ok(());
        }
        let mut packed = [0; get_maximum_output_size(PAGE_SIZE)];
        let place = match compress_into(&from.0, &mut packed) {
            Ok(len) if len <= MAX_COMPRESSED => self.store(&packed[..len])?,
            _ => self.store(&from.0)?,
        };
        self.pages.set(page, Stored::At(place));
        Ok(())
    }

    fn copy_out(&self, page: DevicePage, to: &mut PageData) -> Result<(), CopyOutError> {
        match self.pages.get(page) {
            Stored::Nothing => Err(CopyOutError::Lost),
            Stored::Same(value) => {
                to.0.as_chunks_mut().0.fill(value.to_ne_bytes());
                Ok(())
            }
            Stored::At(place) if place.len() == PAGE_SIZE => {
                self.store.read(place, &mut to.0);
                Ok(())
            }
            Stored::At(place) => {
                let mut packed = [0; MAX_COMPRESSED];
                self.store.read(place, &mut packed);
                match decompress_into(&packed[..place.len()], &mut to.0) {
                    Ok(PAGE_SIZE) => Ok(()),
                    _ => Err(CopyOutError::Lost),
                }
            }
        }
    }

    fn free(&self, page: DevicePage) {
        if let Stored::At(place) = self.pages.take(page) {
            self.store.remove(place);
        }
    }

    fn stored_bytes(&self) -> u64 {
        self.store.stored_bytes()
    }
}

/// The `u64` that the page repeats from its first byte to its last, if it does.
fn repeated_value(page: &PageData) -> Option<u64> {
    let (first, _) = page.0.split_first_chunk()?;
    // A page equal to itself one word further on repeats its first word.
    (page.0[8..] == page.0[..PAGE_SIZE - 8]).then(|| u64::from_ne_bytes(*first))
}
