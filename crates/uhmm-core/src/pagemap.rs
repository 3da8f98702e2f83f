//! Device pages with their reference counts, and the pagemap that owns them.
//!
//! A pagemap is a device's memory as a set of numbered pages with a lifetime. One word a page:
//!
//! | reference count (bits 0..16) | the rest (bits 16..64) | meaning |
//! | --- | --- | --- |
//! | 0 | 0 | free (or never used) |
//! | 0 | other | dead, in the graveyard: `next + 1` of the list of dead pages |
//! | 1 | owner | held by one entry, that of the page `owner` |
//! | more | owner | held by others too: a fault, an eviction, a pin |
//!
//! Rules (DESIGN.md R1, R2, R4):
//! - allocating a page sets its count from zero to one and takes a reference on the pagemap;
//! - [`Pagemap::get`] succeeds only on a count above zero, so "is it free?" is one load;
//! - who takes the count to zero frees the page: gives it to the device once, then its number back
//!   to the allocator, then the pagemap's reference;
//! - a pagemap that was killed allocates nothing; it is released when its references are zero.
//!
//! Application threads must not call into a device: a device may lock, and a thread whose own stack
//! is managed may fault while it holds that lock. They [`bury`](Pagemap::bury) instead, which pushes
//! the page to a list without a lock (one compare-and-swap; popped only whole, so there is no ABA),
//! and the reclaimer frees what is there.

use crate::addr::{DevicePage, PageData, PageNo};
use crate::bitmap::Bitmap;
use crate::device::{CopyInError, CopyOutError, Device};
use crate::stats::DeviceStats;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};

const COUNT: u64 = 0xffff;
const OWNER_SHIFT: u32 = 16;

/// A device and the lifetime of its pages.
pub(crate) struct Pagemap<T> {
    device: Box<dyn Device>,
    pages: T,
    numbers: Bitmap<T>,
    /// One for each page in use, and one for the pagemap itself until it is killed.
    references: AtomicUsize,
    dying: AtomicBool,
    /// The first dead page's number plus one, or zero.
    graveyard: AtomicU64,
}

impl<T: Deref<Target = [AtomicU64]>> Pagemap<T> {
    pub(crate) fn new(
        device: Box<dyn Device>,
        limit: u32,
        table: impl Fn(usize) -> Option<T>,
    ) -> Option<Self> {
        let capacity = device.info().capacity_pages.min(limit) as usize;
        Some(Self {
            device,
            pages: table(capacity)?,
            numbers: Bitmap::new(table(capacity.div_ceil(64))?, capacity),
            references: AtomicUsize::new(1),
            dying: AtomicBool::new(false),
            graveyard: AtomicU64::new(0),
        })
    }

    pub(crate) fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// Stores `from` in a new page that belongs to the entry of `owner`, with one reference: the
    /// entry's.
    pub(crate) fn store(
        &self,
        owner: PageNo,
        from: &PageData,
        stats: &DeviceStats,
    ) -> Result<DevicePage, CopyInError> {
        // The reference comes before the look at `dying`, so that a kill either sees it or is seen.
        self.references.fetch_add(1, SeqCst);
        if self.dying.load(SeqCst) {
            self.put_pagemap();
            return Err(CopyInError::Dead);
        }
        let number = self.numbers.take();
        let page = number.map(|number| DevicePage(number as u32));
        let stored = page.ok_or(CopyInError::Full).and_then(|page| {
            self.device.copy_in(page, from)?;
            Ok(page)
        });
        match stored {
            Ok(page) => {
                let old = self.word(page).swap(owner.0 << OWNER_SHIFT | 1, AcqRel);
                debug_assert_eq!(old, 0, "{page:?} handed out while in use (R1)");
                stats.pages_peak.raise(stats.pages.add(1));
            }
            Err(error) => {
                if error == CopyInError::Dead {
                    self.kill();
                }
                if let Some(number) = number {
                    self.numbers.give(number);
                }
                self.put_pagemap();
            }
        }
        self.count_stored(stats);
        stored
    }

    /// Brings the counters of stored bytes up to date.
    pub(crate) fn count_stored(&self, stats: &DeviceStats) {
        let stored = self.device.stored_bytes();
        stats.stored_bytes.set(stored);
        stats.stored_bytes_peak.raise(stored);
    }

    /// Reads a page on which the caller holds a reference.
    pub(crate) fn load(&self, held: &Held<'_, T>, to: &mut PageData) -> Result<(), CopyOutError> {
        debug_assert!(std::ptr::eq(self, held.pagemap));
        self.device.copy_out(held.page, to)
    }

    fn word(&self, page: DevicePage) -> &AtomicU64 {
        &self.pages[page.0 as usize]
    }

    /// The page of the space that holds `page`, and the page's reference count; `None` if free.
    pub(crate) fn owner(&self, page: DevicePage) -> Option<(PageNo, u16)> {
        let word = self.word(page).load(Acquire);
        let count = (word & COUNT) as u16;
        (count > 0).then_some((PageNo(word >> OWNER_SHIFT), count))
    }

    /// The page now belongs to the entry of `owner`, which the caller has claimed.
    pub(crate) fn change_owner(&self, page: DevicePage, owner: PageNo) {
        let change =
            |word: u64| (word & COUNT != 0).then_some(word & COUNT | owner.0 << OWNER_SHIFT);
        let was = self.word(page).fetch_update(AcqRel, Acquire, change);
        debug_assert!(was.is_ok(), "a free page changes its owner (R1)");
    }

    /// Takes a reference on `page` unless it is free.
    pub(crate) fn get(&self, page: DevicePage) -> Option<Held<'_, T>> {
        let up = |word: u64| (word & COUNT != 0 && word & COUNT != COUNT).then(|| word + 1);
        self.word(page).fetch_update(AcqRel, Acquire, up).ok()?;
        Some(Held {
            pagemap: self,
            page,
        })
    }

    /// Gives a reference to the entry's page back; the last one frees it. Not for application
    /// threads: see [`Pagemap::bury`].
    pub(crate) fn put(&self, page: DevicePage, stats: &DeviceStats) {
        if self.drop_reference(page, 0) {
            self.free(page, stats);
        }
    }

    /// Takes one reference away. `true`: it was the last, and the word is now `dead << 16`.
    fn drop_reference(&self, page: DevicePage, dead: u64) -> bool {
        let down = |word: u64| match word & COUNT {
            0 => None,
            1 => Some(dead << OWNER_SHIFT),
            _ => Some(word - 1),
        };
        let was = self.word(page).fetch_update(AcqRel, Acquire, down);
        let was = was.expect("a reference is given back that nobody had (R1)");
        was & COUNT == 1
    }

    fn free(&self, page: DevicePage, stats: &DeviceStats) {
        self.device.free(page);
        self.numbers.give(page.0 as usize);
        stats.pages.sub(1);
        self.put_pagemap();
    }

    /// Like [`Pagemap::put`], for application threads: the last reference leaves the page to
    /// [`Pagemap::free_buried`].
    pub(crate) fn bury(&self, page: DevicePage) {
        let mut head = self.graveyard.load(Acquire);
        // The link must be right before the page can be seen in the list, and only who takes the
        // count to zero may write it: so the count goes to zero with a mark, then the link is set.
        if !self.drop_reference(page, u64::from(u32::MAX)) {
            return;
        }
        loop {
            self.word(page).store(head << OWNER_SHIFT, Release);
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

    /// Frees what [`Pagemap::bury`] left; returns how many pages.
    pub(crate) fn free_buried(&self, stats: &DeviceStats) -> usize {
        let mut next = self.graveyard.swap(0, AcqRel);
        let mut freed = 0;
        while next != 0 {
            let page = DevicePage((next - 1) as u32);
            next = self.word(page).swap(0, AcqRel) >> OWNER_SHIFT;
            self.free(page, stats);
            freed += 1;
        }
        if freed > 0 {
            self.count_stored(stats);
        }
        freed
    }

    /// No page is handed out from now on. Returns whether it was alive.
    pub(crate) fn kill(&self) -> bool {
        let was_alive = !self.dying.swap(true, SeqCst);
        if was_alive {
            self.put_pagemap();
        }
        was_alive
    }

    pub(crate) fn is_dying(&self) -> bool {
        self.dying.load(SeqCst)
    }

    fn put_pagemap(&self) {
        let was = self.references.fetch_sub(1, AcqRel);
        debug_assert!(
            was > 0,
            "a pagemap reference is given back that nobody had (R2)"
        );
    }

    /// References on the pagemap: pages in use, and one while it is alive. Zero: it may go (R2).
    pub(crate) fn references(&self) -> usize {
        self.references.load(Acquire)
    }

    /// Page numbers at or above this have never been in use.
    pub(crate) fn high_water(&self) -> u32 {
        self.numbers.high_water() as u32
    }

    /// Pages in use.
    pub(crate) fn in_use(&self) -> usize {
        self.numbers.in_use()
    }
}

/// A reference on a device page (R3): while it lives the page is not free, and its pagemap stays.
pub(crate) struct Held<'a, T: Deref<Target = [AtomicU64]>> {
    pagemap: &'a Pagemap<T>,
    page: DevicePage,
}

impl<T: Deref<Target = [AtomicU64]>> Held<'_, T> {
    /// References on the page, this one included.
    pub(crate) fn count(&self) -> u16 {
        self.pagemap.owner(self.page).map_or(0, |(_, count)| count)
    }

    /// Gives the reference back, and the entry's with it: the page has left the device. Returns
    /// whether that freed it.
    pub(crate) fn leave(self, stats: &DeviceStats) {
        self.pagemap.put(self.page, stats);
        self.end(stats);
    }

    /// Gives the reference back.
    pub(crate) fn end(self, stats: &DeviceStats) {
        self.pagemap.put(self.page, stats);
    }
}
