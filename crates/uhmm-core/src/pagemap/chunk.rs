//! A pagemap: a chunk of device memory, its pages with their reference counts, and its lifetime.
//!
//! # The word of a page
//!
//! | reference count (bits 0..16) | owner (16..52) | meaning |
//! | --- | --- | --- |
//! | 0 | 0 | free (or never used), or retired: *bad* |
//! | 0 | other | dead, in the graveyard: `next + 1` of the list of dead pages |
//! | 1 | a page of the space | held by that page's entry |
//! | 1 | `NOBODY` | held by who allocated it: a migration, or a driver |
//! | more | either | held by others too: a fault, an eviction, a pin |
//!
//! Of a page in use, bits 52..61 are the [stamp](crate::stay) of when it was handed out, and bit 61
//! (*used*) says that somebody has worked with it since the hand of [`crate::make_room`] last came by.
//! Both are only advice about what is cold. Bit 62 (*bad*): the memory has failed; the page is never
//! handed out again. Bit 63 (*stored*): the driver has been given the page to keep, and is told when it
//! is free (R4).
//!
//! # The life of the chunk
//!
//! | phase | pages | edge |
//! | --- | --- | --- |
//! | released | there are none | `begin_adding` |
//! | changing | there are none: the driver is being told | `end_adding` |
//! | alive | are handed out | `kill` |
//! | dying | come back only | `begin_release`, once no page is in use (R2) |
//! | changing | there are none: the driver is being told | `end_release` |
//!
//! A new chunk begins as one that was released. Who takes it out of that phase, or out of dying, is
//! the only one to tell the driver; until the driver knows, nobody is given a page.
//!
//! `references` counts the pages in use, and one for the chunk itself while it is alive.

use super::buddy::Buddy;
use crate::addr::{DevicePage, PageNo};
use crate::stay::{STAMP_BITS, Stamp};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::*};

const COUNT: u64 = 0xffff;
const OWNER_SHIFT: u32 = 16;
// Addresses have 47 bits, and numbers of pages 35.
const OWNER: u64 = ((1 << 36) - 1) << OWNER_SHIFT;
/// The owner of a page that no entry names.
pub(super) const NOBODY: u64 = OWNER >> OWNER_SHIFT;
const STAMP_SHIFT: u32 = 52;
const USED: u64 = 1 << (STAMP_SHIFT + STAMP_BITS);
const BAD: u64 = 1 << 62;
const STORED: u64 = 1 << 63;

const ALIVE: u8 = 0;
const DYING: u8 = 1;
const RELEASED: u8 = 2;
const CHANGING: u8 = 3;

/// What became of a page whose last reference went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dead {
    pub(super) stored: bool,
    pub(super) bad: bool,
}

/// What the hand that looks for cold pages has met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    /// A free page.
    Free,
    /// A page that somebody holds, or has just been given.
    Held,
    /// A page that has not been here for long (R20).
    Young,
    /// A page that was used since the hand last came by: it is spared once.
    Used,
    /// None of these.
    Cold,
}

/// See the module's head.
pub(crate) struct DevPagemap<T> {
    first: DevicePage,
    words: T,
    len: usize,
    free: Buddy<T>,
    references: AtomicUsize,
    phase: AtomicU8,
    /// Whether it has ever been alive.
    begun: AtomicBool,
}

impl<T: Deref<Target = [AtomicU64]>> DevPagemap<T> {
    /// A chunk of `len` pages from `first` on, released; `None` when `table` has no room.
    pub(super) fn new(
        first: DevicePage,
        len: usize,
        table: &dyn Fn(usize) -> Option<T>,
    ) -> Option<Self> {
        Some(Self {
            first,
            len,
            words: table(len)?,
            free: Buddy::new(table(Buddy::<T>::words(len))?, len),
            references: AtomicUsize::new(0),
            phase: AtomicU8::new(RELEASED),
            begun: AtomicBool::new(false),
        })
    }

    pub(crate) fn first(&self) -> DevicePage {
        self.first
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn word(&self, page: DevicePage) -> &AtomicU64 {
        &self.words[(page.0 - self.first.0) as usize]
    }

    /// Hands out a block of `1 << order` pages, each with one reference that nobody's entry has.
    pub(super) fn alloc(&self, order: u32, now: Stamp) -> Option<DevicePage> {
        let len = 1 << order;
        // The references come before the look at the phase, so that a kill either sees them or is
        // seen.
        self.references.fetch_add(len, SeqCst);
        let block = match self.phase.load(SeqCst) {
            ALIVE => self.free.take(order),
            _ => None,
        };
        let Some(block) = block else {
            self.references.fetch_sub(len, AcqRel);
            return None;
        };
        let page = self.first.plus(block);
        for i in 0..len {
            self.begin(page.plus(i), now);
        }
        Some(page)
    }

    /// Hands out just `page`.
    pub(super) fn alloc_at(&self, page: DevicePage, now: Stamp) -> bool {
        self.references.fetch_add(1, SeqCst);
        let taken =
            self.phase.load(SeqCst) == ALIVE && self.free.take_at((page.0 - self.first.0) as usize);
        if taken {
            self.begin(page, now);
        } else {
            self.references.fetch_sub(1, AcqRel);
        }
        taken
    }

    fn begin(&self, page: DevicePage, now: Stamp) {
        let word = now.bits() << STAMP_SHIFT | NOBODY << OWNER_SHIFT | 1;
        let old = self.word(page).swap(word, AcqRel);
        debug_assert_eq!(old, 0, "{page:?} handed out while in use (R1)");
    }

    /// The page of the space that holds `page`, if an entry does.
    pub(super) fn owner(&self, page: DevicePage) -> Option<PageNo> {
        let word = self.word(page).load(Acquire);
        let owner = (word & OWNER) >> OWNER_SHIFT;
        (word & COUNT != 0 && owner != NOBODY).then_some(PageNo(owner))
    }

    /// References on `page`; zero when it is free.
    pub(crate) fn count(&self, page: DevicePage) -> u16 {
        (self.word(page).load(Acquire) & COUNT) as u16
    }

    /// Changes the word of a page in use.
    fn change(&self, page: DevicePage, change: impl Fn(u64) -> u64) {
        let in_use = |word: u64| (word & COUNT != 0).then(|| change(word));
        let was = self.word(page).fetch_update(AcqRel, Acquire, in_use);
        debug_assert!(was.is_ok(), "a free page is changed (R1)");
    }

    /// The page now is the entry of `owner`'s, which the caller has claimed.
    pub(super) fn set_owner(&self, page: DevicePage, owner: PageNo) {
        debug_assert!(owner.0 < NOBODY, "{owner:?} is past the end of addresses");
        self.change(page, |word| word & !OWNER | owner.0 << OWNER_SHIFT);
    }

    /// Whether the driver keeps the page's bytes from now on.
    pub(super) fn set_stored(&self, page: DevicePage, stored: bool) {
        let stored = if stored { STORED } else { 0 };
        self.change(page, |word| word & !STORED | stored);
    }

    /// The memory of `page` has failed.
    pub(super) fn set_bad(&self, page: DevicePage) {
        self.change(page, |word| word | BAD);
    }

    /// Whether the memory of `page` has failed.
    pub(super) fn is_bad(&self, page: DevicePage) -> bool {
        self.word(page).load(Acquire) & BAD != 0
    }

    /// Somebody works with `page`, if it is in use.
    pub(super) fn set_used(&self, page: DevicePage) {
        let use_it = |word: u64| (word & COUNT != 0 && word & USED == 0).then_some(word | USED);
        let _ = self.word(page).fetch_update(AcqRel, Relaxed, use_it);
    }

    /// Nobody has, as far as the hand that looks for cold pages knows.
    pub(super) fn clear_used(&self, page: DevicePage) {
        self.word(page).fetch_and(!USED, AcqRel);
    }

    /// What the hand that looks for cold pages meets; `leaves` says of the page that owns one whether it
    /// could be taken away.
    pub(super) fn met(&self, page: DevicePage, now: Stamp, leaves: &dyn Fn(PageNo) -> bool) -> Met {
        let word = self.word(page).load(Acquire);
        let owner = (word & OWNER) >> OWNER_SHIFT;
        match word & COUNT {
            0 => Met::Free,
            1 if owner == NOBODY || !leaves(PageNo(owner)) => Met::Held,
            1 if Stamp::from_bits(word >> STAMP_SHIFT).is_young(now) => Met::Young,
            1 if word & USED != 0 => Met::Used,
            1 => Met::Cold,
            _ => Met::Held,
        }
    }

    /// Takes a reference on `page` unless it is free.
    pub(super) fn get(&self, page: DevicePage) -> bool {
        let up = |word: u64| (word & COUNT != 0 && word & COUNT != COUNT).then(|| word + 1);
        self.word(page).fetch_update(AcqRel, Acquire, up).is_ok()
    }

    /// Takes one reference away. `Some`: it was the last, and the page is for the caller to end, by
    /// [`DevPagemap::end`]; its word says `dead` in the owner's place until then.
    pub(super) fn put(&self, page: DevicePage, dead: u64) -> Option<Dead> {
        let down = |word: u64| match word & COUNT {
            0 => None,
            1 => Some(word & (BAD | STORED) | dead << OWNER_SHIFT),
            _ => Some(word - 1),
        };
        let was = self.word(page).fetch_update(AcqRel, Acquire, down);
        let was = was.expect("a reference is given back that nobody had (R1)");
        (was & COUNT == 1).then_some(Dead {
            stored: was & STORED != 0,
            bad: was & BAD != 0,
        })
    }

    /// Links a dead page of the graveyard to the next.
    pub(super) fn link(&self, page: DevicePage, next: u64) {
        let word = self.word(page).load(Relaxed);
        self.word(page)
            .store(word & !OWNER | next << OWNER_SHIFT, Release);
    }

    /// Takes a dead page out of the graveyard: the link, and what it was.
    pub(super) fn unlink(&self, page: DevicePage) -> (u64, Dead) {
        let word = self.word(page).load(Acquire);
        let dead = Dead {
            stored: word & STORED != 0,
            bad: word & BAD != 0,
        };
        ((word & OWNER) >> OWNER_SHIFT, dead)
    }

    /// A dead page is free again, or retired. The driver knows already.
    pub(super) fn end(&self, page: DevicePage, dead: Dead) {
        let word = if dead.bad { BAD } else { 0 };
        self.word(page).store(word, Release);
        if !dead.bad {
            self.free.give((page.0 - self.first.0) as usize, 0);
        }
        let was = self.references.fetch_sub(1, AcqRel);
        debug_assert!(was > 0, "a pagemap reference is given back twice (R2)");
    }

    /// No page is handed out from now on. Returns whether it was alive.
    pub(super) fn kill(&self) -> bool {
        let killed = self
            .phase
            .compare_exchange(ALIVE, DYING, SeqCst, SeqCst)
            .is_ok();
        if killed {
            self.references.fetch_sub(1, AcqRel);
        }
        killed
    }

    fn begin_change(&self, from: u8) -> bool {
        self.phase
            .compare_exchange(from, CHANGING, SeqCst, SeqCst)
            .is_ok()
    }

    /// Begins the end of a dying chunk none of whose pages is in use. `true` for the one caller that
    /// tells the driver, and then calls [`DevPagemap::end_release`].
    pub(super) fn begin_release(&self) -> bool {
        // Counted only now: nobody else ends this phase, and nobody is given a page in it.
        if !self.begin_change(DYING) {
            return false;
        }
        let unused = self.references.load(SeqCst) == 0;
        if !unused {
            self.phase.store(DYING, SeqCst);
        }
        unused
    }

    /// The driver knows that the chunk is gone.
    pub(super) fn end_release(&self) {
        self.phase.store(RELEASED, SeqCst);
    }

    /// Begins the life of a chunk that is released. `true` for the one caller that tells the driver,
    /// and then calls [`DevPagemap::end_adding`].
    pub(super) fn begin_adding(&self) -> bool {
        self.begin_change(RELEASED)
    }

    /// The driver has added the chunk, or has not.
    pub(super) fn end_adding(&self, added: bool) {
        if added {
            self.begun.store(true, Release);
            self.references.fetch_add(1, SeqCst);
        }
        let phase = if added { ALIVE } else { RELEASED };
        self.phase.store(phase, SeqCst);
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.phase.load(SeqCst) == ALIVE
    }

    pub(crate) fn is_released(&self) -> bool {
        self.phase.load(SeqCst) == RELEASED
    }

    /// Whether the driver has never had memory for the chunk: one that it has removed comes back only
    /// by its will.
    pub(super) fn is_new(&self) -> bool {
        self.is_released() && !self.begun.load(Acquire)
    }

    /// Whether the driver is being told that the chunk comes, or goes.
    pub(super) fn is_changing(&self) -> bool {
        self.phase.load(SeqCst) == CHANGING
    }

    /// References on the pagemap: pages in use, and one while it is alive. Zero: it may go (R2).
    pub(crate) fn references(&self) -> usize {
        self.references.load(Acquire)
    }

    /// The page past the last that was ever handed out.
    pub(super) fn end_of_used(&self) -> DevicePage {
        self.first.plus(self.free.high_water())
    }

    /// The pages that may be in use.
    pub(crate) fn used(&self) -> impl Iterator<Item = DevicePage> + use<'_, T> {
        let used = |&page: &DevicePage| self.word(page).load(Acquire) & COUNT != 0;
        (0..self.free.high_water())
            .map(|i| self.first.plus(i))
            .filter(used)
    }
}
