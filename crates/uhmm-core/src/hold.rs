//! Device pages in the hands of drivers: pages handed out to be filled, and references on pages that
//! are in use, under the rules of their memory's type (R1, R2, R7).
//!
//! Both are given back when they are dropped, on whatever thread: the last reference buries the page,
//! and the reclaimer frees it. So a page can be freed but once, and not used after that:
//!
//! ```compile_fail,E0382
//! fn twice<M: uhmm_core::mmu::Mmu>(pages: uhmm_core::DevicePages<'_, M>) {
//!     drop(pages);
//!     drop(pages);
//! }
//! ```
//!
//! ```compile_fail,E0382
//! fn map_and_keep<M: uhmm_core::mmu::Mmu>(
//!     space: &uhmm_core::Space<M>,
//!     pages: uhmm_core::DevicePages<'_, M>,
//!     to: uhmm_core::addr::PageNo,
//! ) {
//!     let _ = space.map_device_pages(pages, to);
//!     let _ = pages.first();
//! }
//! ```
//!
//! All of this passes the gate, and waits a bounded time for a fork; after that, giving back goes on
//! regardless (a page may then stay in use in the child for ever: held, not lost).

use crate::addr::{DeviceAddr, DevicePage, PageData, PageRange};
use crate::entry::State;
use crate::gate::{Refused, takes_refusals};
use crate::memory_type::Holding;
use crate::mmu::Mmu;
use crate::pagemap::{AllocError, MAX_ORDER};
use crate::space::Space;
use std::fmt;
use std::time::{Duration, Instant};

/// References on one page that drivers may have, more or less: the count has 16 bits.
const MAX_HOLDERS: u16 = 60_000;

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
    /// The page is free, or nothing but the duplicate of a page in RAM.
    Free,
    /// The page is being migrated; try again.
    InFlight,
    /// It has to leave the device first, by a migration.
    MigrateFirst,
    /// Pages of this type are never held long-term: their owner may take them back at any time.
    NeverLongterm,
    /// Pages of this type are held only by peers, which say so.
    PeersOnly,
    /// As many hold it as can.
    TooMany,
    /// The process is forking, and the fork does not end; try again.
    Forking,
    /// Called from a notifier, which must not call the space.
    InNotifier,
}

impl fmt::Display for HoldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSuchPage => "the space has no such device, or the device no such page",
            Self::Free => "the device page is free",
            Self::InFlight => "the page is being migrated; try again",
            Self::MigrateFirst => "migrate the page to RAM before holding it for long",
            Self::NeverLongterm => "pages of this type of device memory are never held long-term",
            Self::Forking => Refused::FORKING,
            Self::InNotifier => Refused::IN_NOTIFIER,
            Self::TooMany => "as many hold the device page as can",
            Self::PeersOnly => "pages of a peer-to-peer window are held by who asks for them only",
        })
    }
}

impl std::error::Error for HoldError {}

takes_refusals!(HoldError);

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

impl<M: Mmu> PageRef<'_, M> {
    /// Gives several back at once, with one pass of the gate.
    pub(crate) fn give_back(all: impl Iterator<Item = Self>) {
        let mut all = all.peekable();
        let Some(first) = all.peek() else { return };
        let space = first.space;
        let _pass = space.gate.enter_to_give_back(&space.mmu);
        for held in all {
            space.device(held.at.device).bury(held.at.page);
            std::mem::forget(held);
        }
    }
}

impl<M: Mmu> Drop for PageRef<'_, M> {
    fn drop(&mut self) {
        let _pass = self.space.gate.enter_to_give_back(&self.space.mmu);
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

    /// Whether they are pages of a device of `space`.
    pub(crate) fn is_of(&self, space: &Space<M>) -> bool {
        std::ptr::eq(self.space, space)
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
        let _pass = self.space.gate.enter_to_give_back(&self.space.mmu);
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
        let _pass = self.gate.enter_soon(&self.mmu)?;
        // Room is left for those who hold pages for a moment: faults and migrations.
        if memory.count(at.page) > MAX_HOLDERS {
            return Err(HoldError::TooMany);
        }
        memory.get(at.page).ok_or(HoldError::Free)?;
        // Who claims the page's entry looks for other references after that: so either this one is
        // seen, or the claim is seen here.
        let refused = match memory.owner(at.page).map(|owner| self.state(owner)) {
            None => None,
            Some(State::Private(now) | State::Coherent(now)) if now == at => None,
            Some(State::Migrating) => Some(HoldError::InFlight),
            // Its entry has let go of it, or it is the duplicate of a page in RAM, which may be
            // forgotten at any time.
            Some(_) => Some(HoldError::Free),
        };
        match refused {
            None => {
                memory.set_used(at.page);
                Ok(PageRef { space: self, at })
            }
            Some(error) => {
                memory.bury(at.page);
                Err(error)
            }
        }
    }

    /// Hands out `1 << order` pages of `device` to its driver, at most 512 (2 MiB). A device that is full
    /// makes room first, of its coldest pages. In memory that the CPU maps they hold zeros (R10). For threads that hold no lock of the device, which is told
    /// of pages that are freed for this, and of a chunk that is added.
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
        let pass = self.gate.enter_soon(&self.mmu)?;
        let (page, _) = self.alloc_with_room(&pass, device, order..=order, 1, PageRange::EMPTY)?;
        self.handed_out(DeviceAddr { device, page }, order)
    }

    /// Hands out one page of `device` by its number, if it is free. Where the memory is a file's, it
    /// holds what it held. For threads as of [`Space::alloc_device_pages`].
    ///
    /// # Errors
    /// [`AllocError`].
    pub fn alloc_device_page_at(&self, at: DeviceAddr) -> Result<DevicePages<'_, M>, AllocError> {
        let memory = self.find_device(at.device);
        let memory = memory.ok_or(AllocError::NoSuchDevice)?;
        if at.page.0 as usize >= memory.capacity() {
            return Err(AllocError::NoSuchPage);
        }
        if memory.is_dying() {
            return Err(AllocError::Removed);
        }
        if !memory.is_open() {
            return Err(AllocError::Suspended);
        }
        let _pass = self.gate.enter_soon(&self.mmu)?;
        // A chunk that has never been needed is made.
        let chunk = memory.chunk_of(at.page);
        if memory.chunk(chunk).is_none() {
            let _ = memory.add_chunk(chunk, &|len| self.mmu.table(len));
        }
        let stats = self.device_stats(at.device);
        let alloc = || memory.alloc_at(at.page, self.stamp(), stats);
        if !alloc() {
            // What was given back may only wait to be freed.
            memory.free_buried(stats);
            if !alloc() {
                return Err(AllocError::Full);
            }
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
        // Nobody uses what is not there.
        let len = len.min(memory.capacity().saturating_sub(first.0 as usize));
        while (0..len).any(|i| memory.count(first.plus(i)) > 0) {
            if start.elapsed() > patience {
                return false;
            }
            self.nap();
        }
        true
    }
}
