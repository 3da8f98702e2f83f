//! Windows: numbers for the pages of memory that the program has mapped itself, and that is adopted.
//!
//! The core keeps one range of page numbers, with one entry each. A number of the space is its page's
//! address divided by 4096, except in the *area*, the upper part of the space, which nobody maps. There
//! adopted memory gets a window: as many numbers in a row as it has pages. Numbers and addresses are
//! turned into each other here and nowhere else, so the core does not know that there is a difference.
//!
//! One number on each side of a window stays without a meaning: no run of pages goes from one window
//! into another, which lies elsewhere. A window's numbers are congruent to its addresses modulo 2 MiB,
//! as those of the space are, so blocks of devices and huge pages fit the same way. Numbers are used in
//! turn, so that one comes up again long after its window has gone.
//!
//! # Protocol
//!
//! Fault handlers and signal handlers read the table, so reading takes no lock. A slot is two words:
//!
//! | word | meaning | written by |
//! | --- | --- | --- |
//! | `pages` | first number and the one past the last, counted in the area, 32 bits each; 0: free | [`Windows::add`], under the lock; [`Windows::shrink`], by who has the pages claimed that go |
//! | `shift` | what is added to a number's own address to get its page's; bit 0: open to requests | `add`, before `pages`; [`Windows::open`] |
//!
//! A window is there as soon as `pages` is stored, and gets smaller from the front until it is gone.
//! It shrinks only by pages that the shrinking thread has claimed. So **who has claimed a page finds it
//! in its window, or nowhere, until it settles the claim**, and that is what the core's calls rely on.
//! Who has not (a handler that was just told of a fault) may learn of a page that has been let go
//! meanwhile. What it does with the number then comes to nothing: a number without a window is nowhere.
//!
//! A reader takes `pages`, `shift`, and `pages` again: if that is the same, the two belong together. A slot
//! that is used anew has `shift` stored after `pages` was 0 and before it is not, and all stores release.
//! It looks again only if the window has shrunk in between.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};
use uhmm_core::addr::{PAGE_SIZE, PageNo, PageRange};
use uhmm_core::lock::Lock;

/// Ranges that can be adopted at a time.
pub const MAX_WINDOWS: usize = 64;

/// Pages of a huge page.
const HUGE: u64 = 512;

const OPEN: u64 = 1;

/// A window, as it was when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The numbers of its pages.
    pub pages: PageRange,
    /// Where the first of them lies.
    pub address: usize,
    /// Whether its pages may be named in requests.
    pub open: bool,
}

impl Window {
    /// The address past its last byte.
    pub fn end(&self) -> usize {
        self.address + self.pages.bytes()
    }

    /// The number of the page at `address`, if it is in the window.
    pub fn page_at(&self, address: usize) -> Option<PageNo> {
        let here = (self.address..self.end()).contains(&address);
        here.then(|| self.pages.start.plus((address - self.address) / PAGE_SIZE))
    }

    /// Whether any byte of `start..end` is in the window.
    pub fn overlaps(&self, start: usize, end: usize) -> bool {
        start < self.end() && self.address < end
    }

    fn address_of(&self, page: PageNo) -> usize {
        self.address + (page.0 - self.pages.start.0) as usize * PAGE_SIZE
    }
}

/// Why there is no window for a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoWindow {
    /// There are [`MAX_WINDOWS`].
    TooMany,
    /// A part of the range has one.
    Overlaps,
    /// There are not so many numbers in a row.
    TooLarge,
}

#[derive(Default)]
struct Slot {
    pages: AtomicU64,
    shift: AtomicU64,
}

/// See the module's head.
pub struct Windows {
    area: PageRange,
    /// Slots from this one on were never used: most spaces need not look at any.
    used: AtomicUsize,
    slots: [Slot; MAX_WINDOWS],
    /// Held while a window is added: where in the area the search for numbers begins.
    next: Lock<u64>,
}

impl Windows {
    /// No windows, with numbers from `area` for those that come.
    pub fn new(area: PageRange) -> Self {
        assert!(u32::try_from(area.len).is_ok(), "numbers have 32 bits");
        Self {
            area,
            used: AtomicUsize::new(0),
            slots: std::array::from_fn(|_| Slot::default()),
            next: Lock::new(1),
        }
    }

    /// The numbers that windows are made of.
    pub fn area(&self) -> PageRange {
        self.area
    }

    fn window(&self, slot: &Slot) -> Option<Window> {
        loop {
            let pages = slot.pages.load(Acquire);
            let shift = slot.shift.load(Acquire);
            if pages == 0 {
                return None;
            }
            if slot.pages.load(Acquire) != pages {
                continue;
            }
            let (first, end) = (pages >> 32, pages & u64::from(u32::MAX));
            let start = self.area.start.plus(first as usize);
            return Some(Window {
                pages: PageRange::new(start, (end - first) as usize),
                address: start.address().wrapping_add((shift & !OPEN) as usize),
                open: shift & OPEN != 0,
            });
        }
    }

    fn slots(&self) -> &[Slot] {
        &self.slots[..self.used.load(Acquire)]
    }

    /// All windows, in no order.
    pub fn iter(&self) -> impl Iterator<Item = Window> {
        self.slots().iter().filter_map(|slot| self.window(slot))
    }

    /// The number of the page at `address`, if it is in a window.
    pub fn page_at(&self, address: usize) -> Option<PageNo> {
        self.iter().find_map(|window| window.page_at(address))
    }

    /// Where the first of `pages` lies, and for how many of them that goes on: they lie side by side,
    /// or are all nowhere.
    pub fn place(&self, pages: PageRange) -> (Option<usize>, usize) {
        let most = |end: PageNo| pages.len.min((end.0 - pages.start.0) as usize);
        if pages.start < self.area.start {
            return (Some(pages.start.address()), most(self.area.start));
        }
        let mut nowhere = pages.len;
        for window in self.iter() {
            if window.pages.contains(pages.start) {
                let address = window.address_of(pages.start);
                return (Some(address), most(window.pages.end()));
            }
            if window.pages.start > pages.start {
                nowhere = nowhere.min(most(window.pages.start));
            }
        }
        (None, nowhere)
    }

    /// Makes a window for `len` pages at `address`, of numbers that `is_free` agrees to.
    ///
    /// # Errors
    /// [`NoWindow`].
    pub fn add(
        &self,
        address: usize,
        len: usize,
        is_free: impl Fn(PageRange) -> bool,
    ) -> Result<PageRange, NoWindow> {
        let mut next = self.next.lock();
        let end = address + len * PAGE_SIZE;
        if self.iter().any(|window| window.overlaps(address, end)) {
            return Err(NoWindow::Overlaps);
        }
        let used = self.used.load(Acquire);
        let free = self.slots[..used]
            .iter()
            .position(|slot| slot.pages.load(Acquire) == 0);
        let free = free.unwrap_or(used);
        let slot = self.slots.get(free).ok_or(NoWindow::TooMany)?;
        let pages = self
            .free_numbers(*next, address, len, is_free)
            .ok_or(NoWindow::TooLarge)?;
        let first = pages.start.0 - self.area.start.0;
        let end = first + len as u64;
        *next = end + 1;
        let shift = address.wrapping_sub(pages.start.address()) as u64;
        slot.shift.store(shift, Release);
        slot.pages.store(first << 32 | end, Release);
        self.used.fetch_max(free + 1, AcqRel);
        Ok(pages)
    }

    /// `len` numbers in a row for pages at `address`, with one to spare on either side: from `next` on,
    /// then from the beginning.
    fn free_numbers(
        &self,
        next: u64,
        address: usize,
        len: usize,
        is_free: impl Fn(PageRange) -> bool,
    ) -> Option<PageRange> {
        let area = self.area;
        // The number that is congruent to the address, from `at` on.
        let fitting = |at: u64| {
            let wanted = PageNo::containing(address).0;
            at + wanted.wrapping_sub(area.start.0 + at) % HUGE
        };
        let room = area.len as u64;
        let (mut at, mut wrapped) = (fitting(next), false);
        loop {
            if at.checked_add(len as u64)? >= room {
                if wrapped {
                    return None;
                }
                (at, wrapped) = (fitting(1), true);
                if at + len as u64 >= room {
                    return None;
                }
            }
            let pages = PageRange::new(area.start.plus(at as usize), len);
            let in_the_way = self
                .iter()
                .map(|window| window.pages)
                .find(|other| pages.start.0 <= other.end().0 && other.start.0 <= pages.end().0);
            at = match in_the_way {
                Some(other) => fitting(other.end().0 + 1 - area.start.0),
                None if is_free(pages) => return Some(pages),
                None => fitting(at + len as u64 + 1),
            };
        }
    }

    fn slot_of(&self, first: PageNo) -> &Slot {
        let begins = |slot: &&Slot| {
            self.window(slot)
                .is_some_and(|window| window.pages.start == first)
        };
        let slot = self.slots().iter().find(begins);
        slot.unwrap_or_else(|| panic!("no window begins at {first:?}"))
    }

    /// Lets the pages of the window that begins at `first` be named in requests, or no more.
    pub fn open(&self, first: PageNo, open: bool) {
        let slot = self.slot_of(first);
        if open {
            slot.shift.fetch_or(OPEN, AcqRel);
        } else {
            slot.shift.fetch_and(!OPEN, AcqRel);
        }
    }

    /// Takes `pages`, which the caller has claimed, off the front of their window. With its last page the
    /// window is gone.
    pub fn shrink(&self, pages: PageRange) {
        let slot = self.slot_of(pages.start);
        let word = slot.pages.load(Acquire);
        let (first, end) = ((word >> 32) + pages.len as u64, word & u64::from(u32::MAX));
        debug_assert!(first <= end, "{pages:?} are not all in one window");
        let left = if first == end { 0 } else { first << 32 | end };
        slot.pages.store(left, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AREA: PageRange = PageRange::new(PageNo(1 << 30), 1 << 20);
    const ADDRESS: usize = 0x7f00_0020_3000;

    fn add(windows: &Windows, address: usize, len: usize) -> PageRange {
        windows.add(address, len, |_| true).unwrap()
    }

    #[test]
    fn numbers_and_addresses_turn_into_each_other() {
        let windows = Windows::new(AREA);
        assert_eq!(windows.page_at(ADDRESS), None);
        let ordinary = PageRange::new(PageNo(77), 9);
        assert_eq!(windows.place(ordinary), (Some(77 << 12), 9));
        let pages = add(&windows, ADDRESS, 100);
        assert_eq!(pages.start.0 % HUGE, 3, "congruent to the address");
        assert_eq!(windows.page_at(ADDRESS - 1), None);
        assert_eq!(windows.page_at(ADDRESS), Some(pages.start));
        let last = ADDRESS + 100 * PAGE_SIZE - 1;
        assert_eq!(windows.page_at(last), Some(pages.start.plus(99)));
        assert_eq!(windows.page_at(last + 1), None);
        let some = PageRange::new(pages.start.plus(90), 5);
        assert_eq!(windows.place(some), (Some(ADDRESS + 90 * PAGE_SIZE), 5));
    }

    #[test]
    fn what_goes_past_a_window_is_cut() {
        let windows = Windows::new(AREA);
        let pages = add(&windows, ADDRESS, 100);
        let past = PageRange::new(pages.start.plus(90), 50);
        assert_eq!(windows.place(past), (Some(ADDRESS + 90 * PAGE_SIZE), 10));
        let before = PageRange::new(PageNo(pages.start.0 - 2), 50);
        assert_eq!(windows.place(before), (None, 2));
        let last_ordinary = PageRange::new(PageNo(AREA.start.0 - 3), 50);
        let (address, len) = windows.place(last_ordinary);
        assert_eq!((address, len), (Some(last_ordinary.start.address()), 3));
        assert_eq!(windows.place(PageRange::new(pages.end(), 1)), (None, 1));
    }

    #[test]
    fn there_is_a_number_between_any_two_windows_and_none_is_used_twice() {
        let windows = Windows::new(PageRange::new(AREA.start, 8192));
        let mut lens = (1..40).cycle();
        let mut live = Vec::new();
        for round in 0..2000 {
            let len = lens.next().unwrap();
            match windows.add(ADDRESS + (round << 24) + round * 7 * PAGE_SIZE, len, |_| {
                true
            }) {
                Ok(pages) => {
                    for &other in &live {
                        let other: PageRange = other;
                        let apart = pages.end() < other.start || other.end() < pages.start;
                        assert!(apart, "{pages:?} and {other:?}");
                    }
                    assert!(pages.start > AREA.start && pages.end().0 < AREA.start.0 + 8192);
                    live.push(pages);
                }
                Err(_) => {
                    let gone = live.remove(round % live.len());
                    windows.shrink(gone);
                    assert_eq!(windows.place(gone).0, None);
                }
            }
            assert_eq!(windows.iter().count(), live.len());
        }
    }

    #[test]
    fn numbers_that_are_not_free_are_passed_by() {
        let windows = Windows::new(AREA);
        let first = add(&windows, ADDRESS, 10);
        windows.shrink(first);
        let taken = PageRange::new(AREA.start, 5000);
        let free = |pages: PageRange| pages.start >= taken.end();
        let pages = windows.add(ADDRESS, 10, free).unwrap();
        assert!(pages.start >= taken.end());
        let elsewhere = ADDRESS + (1 << 40);
        for (len, is_free) in [(AREA.len, true), (9, false)] {
            let none = windows.add(elsewhere, len, |_| is_free);
            assert_eq!(none, Err(NoWindow::TooLarge));
        }
        let overlapping = windows.add(ADDRESS + 9 * PAGE_SIZE, 2, |_| true);
        assert_eq!(overlapping, Err(NoWindow::Overlaps));
        for other in 1..MAX_WINDOWS {
            add(&windows, ADDRESS + (other << 24), 1);
        }
        let more = windows.add(ADDRESS + (1 << 40), 1, |_| true);
        assert_eq!(more, Err(NoWindow::TooMany));
    }

    #[test]
    fn a_window_goes_from_the_front_and_the_rest_stays() {
        let windows = Windows::new(AREA);
        let pages = add(&windows, ADDRESS, 100);
        windows.open(pages.start, true);
        let front = PageRange::new(pages.start, 64);
        windows.shrink(front);
        assert_eq!(windows.place(front), (None, 64));
        assert_eq!(windows.page_at(ADDRESS), None);
        let rest = windows.iter().next().unwrap();
        assert_eq!((rest.pages.start, rest.pages.len), (front.end(), 36));
        assert!(rest.open);
        assert_eq!(windows.page_at(ADDRESS + 64 * PAGE_SIZE), Some(front.end()));
        windows.shrink(rest.pages);
        assert_eq!(windows.iter().next(), None);
    }

    /// Readers see each window whole or not at all, while others come and go in the same slots.
    #[test]
    fn readers_never_mix_two_windows() {
        let windows = Windows::new(PageRange::new(AREA.start, 1 << 13));
        let addresses = [ADDRESS, ADDRESS + (1 << 40) + PAGE_SIZE];
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Acquire) {
                        for window in windows.iter() {
                            let shrunk = 100 - window.pages.len;
                            let from = window.address - shrunk * PAGE_SIZE;
                            assert!(addresses.contains(&from), "{window:x?}");
                        }
                    }
                });
            }
            for round in 0..20_000 {
                let mut pages = add(&windows, addresses[round % 2], 100);
                while pages.len > 0 {
                    let front = PageRange::new(pages.start, pages.len.min(30));
                    windows.shrink(front);
                    pages = PageRange::new(front.end(), pages.len - front.len);
                }
            }
            done.store(true, Release);
        });
    }
}
