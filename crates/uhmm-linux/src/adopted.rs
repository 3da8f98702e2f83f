//! Which of the program's own memory is adopted: a table that fault handlers and signal handlers read.
//!
//! A page is known by its address, adopted or not. So all that there is to know of adopted memory is which
//! pages it has: at most [`MAX_RANGES`] ranges of them. Any part of a range can be taken out again.
//!
//! # Protocol
//!
//! Readers take no lock. A slot is one word, so a range is seen whole, as it was at some moment.
//!
//! | bits of a slot | meaning |
//! | --- | --- |
//! | 0..28 | how many pages the range has; 0: the slot is free |
//! | 28..64 | its first page |
//!
//! A reader looks at one slot after the other. So a page that goes from one slot to another, because its
//! range is split or joined with its neighbour, may be missed in both. Who moves pages stores the slot that
//! gets them, *then* counts up `moves`, and *then* stores the slot that they leave. A reader that has found
//! nothing, and sees that `moves` is not what it was before it began, looks again. So **a page that stays
//! adopted is found, whatever becomes of its neighbours**.
//!
//! A page is taken out by who has claimed it. So **who has claimed a page finds it, or does not, until the
//! claim is settled**, and that is what the core's calls rely on. Who has not (a handler that was just told
//! of a fault) may learn of a page that is let go at that moment. What it does with that comes to nothing.
//!
//! A range that is being adopted is in the table before its pages are known: until then it is *coming*
//! too, and no page of it is taken for one that nobody has touched.
//!
//! Writers hold `writing`, and are inside the gate: a fork finds no change half done.

use arrayvec::ArrayVec;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};
use uhmm_core::addr::{PageNo, PageRange};
use uhmm_core::lock::Lock;

/// Ranges that can be adopted at a time; neighbours are one.
pub const MAX_RANGES: usize = 256;

const LEN_BITS: u32 = 28;
/// The most pages of a slot: a larger range has several.
const MOST: usize = 1 << (LEN_BITS - 1);

/// Ranges that can be coming at a time: who adopts one more waits.
const MOST_COMING: usize = 8;
/// A range that is coming and is too large for a word: every page is taken to be.
const ANY: u64 = u64::MAX;

/// Why a range is not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAdded {
    /// There are [`MAX_RANGES`].
    TooMany,
    /// A part of the range is there.
    Overlaps,
}

/// See the module's head.
pub struct AdoptedRanges {
    slots: [AtomicU64; MAX_RANGES],
    /// Slots from this one on were never used: most spaces need not look at any.
    used: AtomicUsize,
    /// Times that pages went from one slot to another.
    moves: AtomicU64,
    coming: [AtomicU64; MOST_COMING],
    writing: Lock<()>,
}

/// A range that is being adopted: until this is dropped.
pub struct Coming<'a> {
    slot: &'a AtomicU64,
    /// Its pages.
    pub pages: PageRange,
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        self.slot.store(0, Release);
    }
}

impl Default for AdoptedRanges {
    fn default() -> Self {
        Self {
            slots: [const { AtomicU64::new(0) }; MAX_RANGES],
            used: AtomicUsize::new(0),
            moves: AtomicU64::new(0),
            coming: [const { AtomicU64::new(0) }; MOST_COMING],
            writing: Lock::new(()),
        }
    }
}

fn word(pages: PageRange) -> u64 {
    debug_assert!(pages.start.0 < 1 << (64 - LEN_BITS) && pages.len <= MOST);
    if pages.len == 0 {
        return 0;
    }
    pages.start.0 << LEN_BITS | pages.len as u64
}

fn range(word: u64) -> Option<PageRange> {
    let len = (word & ((1 << LEN_BITS) - 1)) as usize;
    (len > 0).then(|| PageRange::new(PageNo(word >> LEN_BITS), len))
}

fn between(start: PageNo, end: PageNo) -> PageRange {
    PageRange::new(start, end.0.saturating_sub(start.0) as usize)
}

impl AdoptedRanges {
    /// The ranges there are, with their slots, in no order.
    fn iter(&self) -> impl Iterator<Item = (usize, PageRange)> {
        let used = &self.slots[..self.used.load(Acquire)];
        let slots = used.iter().enumerate();
        slots.filter_map(|(at, slot)| Some((at, range(slot.load(Acquire))?)))
    }

    /// The range that `page` is in, if it is adopted. May be called anywhere, in a signal handler too.
    pub fn find(&self, page: PageNo) -> Option<PageRange> {
        loop {
            let moves = self.moves.load(Acquire);
            let found = self.iter().find(|(_, pages)| pages.contains(page));
            if found.is_some() || self.moves.load(Acquire) == moves {
                return found.map(|(_, pages)| pages);
            }
        }
    }

    /// All ranges, in no order.
    pub fn all(&self) -> ArrayVec<PageRange, MAX_RANGES> {
        let _still = self.writing.lock();
        self.iter().map(|(_, pages)| pages).collect()
    }

    /// Whether any of `pages` is adopted.
    pub fn overlap(&self, pages: PageRange) -> bool {
        let _still = self.writing.lock();
        self.iter().any(|(_, other)| other.overlaps(pages))
    }

    /// Whether `page`, which is adopted, is of a range whose pages are not all known yet.
    pub fn is_coming(&self, page: PageNo) -> bool {
        let has = |word| word == ANY || range(word).is_some_and(|pages| pages.contains(page));
        self.coming.iter().any(|slot| has(slot.load(Acquire)))
    }

    /// Adds a range, which is coming as long as the result lives. From inside the gate.
    ///
    /// # Errors
    /// [`NotAdded`].
    pub fn add(&self, pages: PageRange) -> Result<Coming<'_>, NotAdded> {
        let coming = self.announce(pages);
        self.insert(pages)?;
        Ok(coming)
    }

    /// In the child of a fork nobody is adopting anything.
    pub fn forget_coming(&self) {
        self.coming.iter().for_each(|slot| slot.store(0, Release));
    }

    fn announce(&self, pages: PageRange) -> Coming<'_> {
        let new = if pages.len > MOST { ANY } else { word(pages) };
        loop {
            let free = |slot: &&AtomicU64| slot.compare_exchange(0, new, AcqRel, Relaxed).is_ok();
            if let Some(slot) = self.coming.iter().find(free) {
                return Coming { slot, pages };
            }
            std::thread::yield_now();
        }
    }

    fn insert(&self, pages: PageRange) -> Result<(), NotAdded> {
        let _alone = self.writing.lock();
        if self.iter().any(|(_, other)| other.overlaps(pages)) {
            return Err(NotAdded::Overlaps);
        }
        if pages.len > MOST {
            return self.add_parts(pages);
        }
        let beside = |is: &dyn Fn(PageRange) -> bool| {
            let fits = |other: PageRange| other.len + pages.len <= MOST;
            self.iter().find(|&(_, other)| is(other) && fits(other))
        };
        let before = beside(&|other| other.end() == pages.start);
        let after = beside(&|other| other.start == pages.end());
        match (before, after) {
            (None, None) => {
                let slot = self.free_slot().ok_or(NotAdded::TooMany)?;
                self.store(slot, pages);
            }
            (Some((slot, before)), None) => self.store(slot, between(before.start, pages.end())),
            (None, Some((slot, after))) => self.store(slot, between(pages.start, after.end())),
            (Some((slot, before)), Some((_, after)))
                if before.len + pages.len + after.len > MOST =>
            {
                self.store(slot, between(before.start, pages.end()));
            }
            (Some((slot, before)), Some((left, after))) => {
                self.store(slot, between(before.start, after.end()));
                self.moves.fetch_add(1, AcqRel);
                self.store(left, PageRange::EMPTY);
            }
        }
        Ok(())
    }

    /// Adds a range that takes several slots.
    fn add_parts(&self, pages: PageRange) -> Result<(), NotAdded> {
        let free = MAX_RANGES - self.iter().count();
        if pages.len.div_ceil(MOST) > free {
            return Err(NotAdded::TooMany);
        }
        for at in (0..pages.len).step_by(MOST) {
            let slot = self.free_slot().ok_or(NotAdded::TooMany)?;
            let len = MOST.min(pages.len - at);
            self.store(slot, PageRange::new(pages.start.plus(at), len));
        }
        Ok(())
    }

    /// Makes a range begin with `page`, if one goes across it, by making two of it. `false`: there is no
    /// slot for the second. From inside the gate.
    #[must_use]
    pub fn cut(&self, page: PageNo) -> bool {
        let _alone = self.writing.lock();
        let across = |of: PageRange| of.start < page && page < of.end();
        let Some((slot, of)) = self.iter().find(|&(_, of)| across(of)) else {
            return true;
        };
        let Some(free) = self.free_slot() else {
            return false;
        };
        self.store(free, between(page, of.end()));
        self.moves.fetch_add(1, AcqRel);
        self.store(slot, between(of.start, page));
        true
    }

    /// Makes sure that `pages` are not in the middle of a range. The rest is as with [`Self::cut`].
    #[must_use]
    pub fn cut_after(&self, pages: PageRange) -> bool {
        let around = |of: PageRange| of.start < pages.start && pages.end() < of.end();
        !self.find(pages.start).is_some_and(around) || self.cut(pages.end())
    }

    /// Takes `pages` out, which the caller has claimed, and which are not in the middle of a range
    /// ([`Self::cut_after`]). From inside the gate.
    pub fn remove(&self, pages: PageRange) {
        let _alone = self.writing.lock();
        let touched: ArrayVec<_, MAX_RANGES> =
            self.iter().filter(|(_, of)| of.overlaps(pages)).collect();
        for (slot, of) in touched {
            let front = between(of.start, pages.start);
            let back = between(pages.end(), of.end());
            debug_assert!(front.len == 0 || back.len == 0, "cut_after comes first");
            self.store(slot, if front.len > 0 { front } else { back });
        }
    }

    fn free_slot(&self) -> Option<usize> {
        let free = self.slots.iter().position(|slot| slot.load(Acquire) == 0)?;
        self.used.fetch_max(free + 1, AcqRel);
        Some(free)
    }

    fn store(&self, slot: usize, pages: PageRange) {
        self.slots[slot].store(word(pages), Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    const START: PageNo = PageNo(0x7_f000_0203);

    fn pages(first: usize, len: usize) -> PageRange {
        PageRange::new(START.plus(first), len)
    }

    fn add(ranges: &AdoptedRanges, first: usize, len: usize) {
        drop(ranges.add(pages(first, len)).unwrap());
    }

    fn take_out(ranges: &AdoptedRanges, first: usize, len: usize) {
        assert!(ranges.cut_after(pages(first, len)));
        ranges.remove(pages(first, len));
    }

    fn found(ranges: &AdoptedRanges, page: usize) -> Option<PageRange> {
        ranges.find(START.plus(page))
    }

    #[test]
    fn a_page_is_found_in_its_range() {
        let ranges = AdoptedRanges::default();
        assert_eq!(found(&ranges, 0), None);
        add(&ranges, 10, 100);
        assert_eq!(found(&ranges, 9), None);
        assert_eq!(found(&ranges, 10), Some(pages(10, 100)));
        assert_eq!(found(&ranges, 109), Some(pages(10, 100)));
        assert_eq!(found(&ranges, 110), None);
        let last = PageNo((1 << 36) - 2);
        drop(ranges.add(PageRange::new(last, 1)).unwrap());
        assert_eq!(ranges.find(last), Some(PageRange::new(last, 1)));
        assert!(ranges.overlap(pages(0, 11)) && !ranges.overlap(pages(0, 10)));
    }

    #[test]
    fn what_is_there_is_not_added_again() {
        let ranges = AdoptedRanges::default();
        add(&ranges, 10, 10);
        for (first, len) in [(10, 10), (9, 2), (19, 1), (0, 100), (12, 2)] {
            let refused = ranges.add(pages(first, len)).map(drop);
            assert_eq!(refused, Err(NotAdded::Overlaps));
        }
        assert_eq!(ranges.all().as_slice(), [pages(10, 10)]);
    }

    #[test]
    fn a_range_is_coming_until_it_is_known() {
        let ranges = AdoptedRanges::default();
        let [first, second] =
            [(10, 10), (20, 10)].map(|(at, len)| ranges.add(pages(at, len)).unwrap());
        let is_coming = |page| ranges.is_coming(START.plus(page));
        assert!(is_coming(10) && is_coming(29) && !is_coming(30));
        drop(first);
        assert!(!is_coming(10) && is_coming(20));
        drop(second);
        assert!(!is_coming(20));
        let refused = ranges.add(pages(5, 10)).map(drop);
        assert_eq!(refused, Err(NotAdded::Overlaps));
        assert!(!is_coming(12), "what is refused does not come");
        let large = ranges.add(PageRange::new(PageNo(1), 2 * MOST)).unwrap();
        assert!(is_coming(12));
        drop(large);
        assert!(!is_coming(12));
    }

    #[test]
    fn neighbours_are_one_range() {
        let ranges = AdoptedRanges::default();
        add(&ranges, 10, 10);
        add(&ranges, 30, 10);
        add(&ranges, 5, 5);
        add(&ranges, 40, 5);
        assert_eq!(ranges.all().len(), 2);
        add(&ranges, 20, 10);
        assert_eq!(ranges.all().as_slice(), [pages(5, 40)]);
    }

    #[test]
    fn any_part_can_be_taken_out() {
        let ranges = AdoptedRanges::default();
        add(&ranges, 0, 100);
        for (first, len, left) in [
            (40, 10, vec![pages(0, 40), pages(50, 50)]),
            (0, 5, vec![pages(5, 35), pages(50, 50)]),
            (95, 5, vec![pages(5, 35), pages(50, 45)]),
            (30, 30, vec![pages(5, 25), pages(60, 35)]),
            (5, 25, vec![pages(60, 35)]),
            (60, 35, vec![]),
        ] {
            take_out(&ranges, first, len);
            let mut all = ranges.all();
            all.sort_by_key(|range| range.start);
            assert_eq!(all.as_slice(), left);
            assert_eq!(found(&ranges, first), None);
        }
        take_out(&ranges, 0, 100);
    }

    #[test]
    fn a_range_is_cut_where_it_is_to_begin() {
        let ranges = AdoptedRanges::default();
        add(&ranges, 0, 100);
        for page in [0, 100, 200, 40, 40] {
            assert!(ranges.cut(START.plus(page)));
        }
        assert_eq!(ranges.all().as_slice(), [pages(0, 40), pages(40, 60)]);
        ranges.remove(pages(40, 10));
        ranges.remove(pages(30, 10));
        assert_eq!(ranges.all().as_slice(), [pages(0, 30), pages(50, 50)]);
    }

    #[test]
    fn there_are_so_many_and_no_more() {
        let ranges = AdoptedRanges::default();
        for i in 0..MAX_RANGES {
            add(&ranges, i * 10, 5);
        }
        let refused = ranges.add(pages(9999, 1)).map(drop);
        assert_eq!(refused, Err(NotAdded::TooMany));
        assert!(
            !ranges.cut_after(pages(1, 1)),
            "there is no slot for the rest"
        );
        assert_eq!(found(&ranges, 1), Some(pages(0, 5)));
        // What needs no slot works.
        add(&ranges, 5, 5);
        assert_eq!(ranges.all().len(), MAX_RANGES - 1);
        take_out(&ranges, 1, 1);
        assert_eq!(ranges.all().len(), MAX_RANGES);
        take_out(&ranges, 2, 1);
        take_out(&ranges, 24, 1);
    }

    #[test]
    fn a_range_may_be_larger_than_a_slot() {
        let ranges = AdoptedRanges::default();
        let all = PageRange::new(PageNo(0x1000), 5 * MOST + 7);
        drop(ranges.add(all).unwrap());
        for page in [0, MOST - 1, MOST, 5 * MOST + 6] {
            assert!(ranges.find(all.start.plus(page)).is_some());
        }
        assert_eq!(ranges.find(all.end()), None);
        // Neighbours that do not fit into one slot stay two.
        drop(ranges.add(PageRange::new(all.end(), 1)).unwrap());
        assert_eq!(ranges.all().len(), 6);
        let some = PageRange::new(all.start.plus(9), 2 * MOST);
        assert!(ranges.cut_after(some));
        ranges.remove(some);
        assert!(ranges.find(all.start.plus(8)).is_some());
        assert_eq!(ranges.find(all.start.plus(9)), None);
        assert_eq!(ranges.find(all.start.plus(2 * MOST + 8)), None);
        assert!(ranges.find(all.start.plus(2 * MOST + 9)).is_some());
    }

    /// Pages that stay are found by readers at any moment, while their neighbours go and come, and they
    /// themselves go from one slot to another, with all the others between the two.
    #[test]
    fn readers_never_miss_a_page_that_stays() {
        const STAY: [usize; 3] = [0, 50, 99];
        const ROUNDS: usize = 50_000;
        let ranges = AdoptedRanges::default();
        let others = |i: usize| 1000 + i * 10;
        (0..MAX_RANGES - 1).for_each(|i| add(&ranges, others(i), 1));
        add(&ranges, 0, 100);
        // The last slot has them, and what is split off goes to the first, then to one in the middle.
        [0, MAX_RANGES / 2]
            .iter()
            .for_each(|&i| take_out(&ranges, others(i), 1));
        let (done, missed) = (AtomicBool::new(false), AtomicBool::new(false));
        let looks = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Acquire) {
                        let all = pages(0, 100);
                        let is_there = |page| found(&ranges, page).is_some_and(|of| all.covers(of));
                        let right = STAY.into_iter().all(is_there) && !is_there(100);
                        missed.fetch_or(!right, Relaxed);
                        looks.fetch_add(1, Relaxed);
                    }
                });
            }
            let mut rounds = 0;
            while rounds < ROUNDS || looks.load(Relaxed) < ROUNDS {
                let (first, len) = [(1, 49), (51, 48), (20, 7)][rounds % 3];
                take_out(&ranges, first, len);
                if first == 20 {
                    take_out(&ranges, 60, 1);
                    add(&ranges, 60, 1);
                }
                add(&ranges, first, len);
                rounds += 1;
            }
            done.store(true, Release);
        });
        assert!(!missed.load(Relaxed), "a page that stays was not found");
        assert_eq!(found(&ranges, 0), Some(pages(0, 100)));
    }
}
