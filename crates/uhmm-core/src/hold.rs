//! Device pages in the hands of drivers: pages handed out to be filled, and references on pages that
//! are in use, under the rules of their memory's type (R1, R2, R7).
//!
//! Both are given back when they are dropped, on whatever thread: the last reference buries the page,
//! and the reclaimer frees it. So a page can be freed but once, and not used after that.

use crate::addr::{DeviceAddr, DevicePage, PageData};
use crate::memory_type::Holding;
use crate::mmu::Mmu;
use crate::pagemap::{AllocError, MAX_ORDER};
use crate::space::Space;
use std::fmt;
use std::time::{Duration, Instant};

/// How a device page is to be held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hold {
    /// For as long as the holder likes, not for the length of an operation.
    pub longterm: bool,
    /// By another device, which can reach pages of peers.
    pub peer: bool,
}

/// Why a device page is not held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldError {
    /// The space has no such device, or the device no such page.
    NoSuchPage,
    /// The page is free.
    Free,
    /// It has to leave the device first, by a migration.
    MigrateFirst,
    /// Pages of this type are never held long-term: their owner may take them back at any time.
    NeverLongterm,
    /// Pages of this type are held only by peers, which say so.
    PeersOnly,
}

impl fmt::Display for HoldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSuchPage => "the space has no such device, or the device no such page",
            Self::Free => "the device page is free",
            Self::MigrateFirst => "migrate the page to RAM before holding it for long",
            Self::NeverLongterm => "pages of this type of device memory are never held long-term",
            Self::PeersOnly => "pages of a peer-to-peer window are held by who asks for them only",
        })
    }
}

impl std::error::Error for HoldError {}

/// A reference on a device page. While it lives, the page is not freed, its pagemap stays, and it
/// does not migrate (R7).
pub struct PageRef<'a, M: Mmu> {
    space: &'a Space<M>,
    at: DeviceAddr,
}

impl<M: Mmu> PageRef<'_, M> {
    /// The page.
    pub fn at(&self) -> DeviceAddr {
        self.at
    }
}

impl<M: Mmu> Drop for PageRef<'_, M> {
    fn drop(&mut self) {
        self.space.device(self.at.device).bury(self.at.page);
    }
}

/// Pages of a device, handed out to its driver: a block of `1 << order` of them.
pub struct DevicePages<'a, M: Mmu> {
    space: &'a Space<M>,
    first: DeviceAddr,
    order: u32,
    /// Those before this one have been given on.
    given: usize,
}

impl<M: Mmu> DevicePages<'_, M> {
    /// The first page; the others follow it, and the block is aligned to its size.
    pub fn first(&self) -> DeviceAddr {
        self.first
    }

    /// The block has `1 << order` pages.
    pub fn order(&self) -> u32 {
        self.order
    }

    /// Gives the bytes of page `i` of the block to `with`, where the CPU can map the device's memory.
    /// `false`: it cannot, or the machine has no memory for it.
    pub fn with_bytes(&mut self, i: usize, with: &mut dyn FnMut(&mut PageData)) -> bool {
        assert!(
            i < 1 << self.order,
            "page {i} of a block of order {}",
            self.order
        );
        let memory = self.space.device(self.first.device);
        memory.memory_type().is_mapped() && self.space.mmu.with_arena(self.first.plus(i), with)
    }

    /// The first page, which is the caller's to give back from now on.
    pub(crate) fn into_first(mut self) -> DeviceAddr {
        self.given = 1;
        self.first
    }

    /// The next `pages` pages have found another owner.
    pub(crate) fn give_on(&mut self, pages: usize) {
        self.given += pages;
    }
}

impl<M: Mmu> Drop for DevicePages<'_, M> {
    fn drop(&mut self) {
        let memory = self.space.device(self.first.device);
        for i in self.given..1 << self.order {
            memory.bury(self.first.page.plus(i));
        }
    }
}

impl<M: Mmu> Space<M> {
    /// Takes a reference on a device page that is in use.
    ///
    /// # Errors
    /// [`HoldError`].
    pub fn hold_device_page(
        &self,
        at: DeviceAddr,
        hold: Hold,
    ) -> Result<PageRef<'_, M>, HoldError> {
        let memory = self.find_device(at.device).ok_or(HoldError::NoSuchPage)?;
        if at.page.0 as usize >= memory.capacity() {
            return Err(HoldError::NoSuchPage);
        }
        match memory.memory_type().holding(hold.longterm) {
            Holding::Anybody | Holding::ItsDevice => {}
            Holding::Peers if hold.peer => {}
            Holding::Peers => return Err(HoldError::PeersOnly),
            Holding::AfterMigrating => return Err(HoldError::MigrateFirst),
            Holding::Nobody => return Err(HoldError::NeverLongterm),
        }
        memory.get(at.page).ok_or(HoldError::Free)?;
        Ok(PageRef { space: self, at })
    }

    /// Hands out `1 << order` pages of `device` to its driver, at most 512 (2 MiB). In memory that
    /// the CPU maps they hold zeros (R10).
    ///
    /// # Errors
    /// [`AllocError`].
    pub fn alloc_device_pages(
        &self,
        device: u8,
        order: u32,
    ) -> Result<DevicePages<'_, M>, AllocError> {
        self.find_device(device).ok_or(AllocError::NoSuchDevice)?;
        if order > MAX_ORDER {
            return Err(AllocError::Full);
        }
        let page = self.alloc(device, order)?;
        self.handed_out(DeviceAddr { device, page }, order)
    }

    /// Hands out one page of `device` by its number, if it is free. Where the memory is a file's, it
    /// holds what it held.
    ///
    /// # Errors
    /// [`AllocError`].
    pub fn alloc_device_page_at(&self, at: DeviceAddr) -> Result<DevicePages<'_, M>, AllocError> {
        let memory = self.find_device(at.device);
        let memory = memory.ok_or(AllocError::NoSuchDevice)?;
        if memory.is_dying() {
            return Err(AllocError::Removed);
        }
        // A chunk that has never been needed is made.
        let chunk = memory.chunk_of(at.page);
        if memory.chunk(chunk).is_none() {
            let _ = memory.add_chunk(chunk, &|len| self.mmu.table(len));
        }
        if !memory.alloc_at(at.page, self.device_stats(at.device)) {
            return Err(AllocError::Full);
        }
        self.handed_out(at, 0)
    }

    fn handed_out(&self, first: DeviceAddr, order: u32) -> Result<DevicePages<'_, M>, AllocError> {
        let mut pages = DevicePages {
            space: self,
            first,
            order,
            given: 0,
        };
        let memory_type = self.device(first.device).memory_type();
        if memory_type.is_mapped() {
            for i in 0..1 << order {
                let clear = &mut |data: &mut PageData| {
                    if !memory_type.keeps_bytes() {
                        data.0.fill(0);
                    }
                };
                if !pages.with_bytes(i, clear) {
                    return Err(AllocError::Full);
                }
            }
        }
        Ok(pages)
    }

    /// Waits until nobody uses `len` pages of a device from `first` on, as a file system does before
    /// it gives blocks of a file to another. `false`: `patience` was over first.
    pub fn wait_idle(&self, device: u8, first: DevicePage, len: usize, patience: Duration) -> bool {
        let Some(memory) = self.find_device(device) else {
            return true;
        };
        let start = Instant::now();
        while (0..len).any(|i| memory.count(first.plus(i)) > 0) {
            if start.elapsed() > patience {
                return false;
            }
            std::thread::yield_now();
        }
        true
    }
}
