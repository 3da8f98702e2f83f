//! The allocator of device pages: a binary buddy allocator without locks.
//!
//! A block is 2^k pages from a multiple of 2^k on; k, its order, is at most [`MAX_ORDER`]. Each order
//! has a bitmap with a bit for each block. A page is in exactly one of these states:
//!
//! | page | in the table | whose |
//! | --- | --- | --- |
//! | fresh | at or above the mark; no bits | nobody's, free |
//! | free | below the mark; the bit of one block around it is set | nobody's, free |
//! | in hand | below the mark; no bits | who took it, or who splits or merges the block it lies in |
//!
//! # Protocol
//!
//! Only who has a block in hand sets its bit, and who clears a bit has the block in hand: so no page
//! is handed out twice. Every change of bits is one atomic operation on one word:
//!
//! - *take* clears the bit of a block, and sets the bits of the halves that it splits off.
//! - *give* clears the buddy's bit if it is set; both are in hand then, as one block of the next
//!   order, and *give* goes on with that. Otherwise it sets the block's own bit, and is done.
//! - *grow* raises the mark by a block, which is in hand then, and sets its bit.
//!
//! The bits of two buddies are never both set, so when nobody is at work the free blocks are as large
//! as can be. For buddies are bits 2i and 2i + 1 of one word, and *give* looks at the one and sets
//! the other in one compare-and-swap of that word: if both buddies are given at once, the second
//! in the word's order of changes sees the first one's bit (or somebody has taken that block
//! meanwhile, and will give it). *take* sets the bit of a half while the other half is in hand, so
//! its bit is clear; *grow* that of a block whose buddy is none, or not all there.
//!
//! `free` counts the free pages less those that are reserved: who takes counts down first, and who
//! gives sets bits first and counts up then. So who holds a reservation for one page looks for one
//! until it is found: if none is to be seen, another thread has one in hand and is about to set its
//! bit. Nobody waits while having pages in hand that are not handed out.
//!
//! Each order's count of set bits is raised before a bit is set and lowered after one is cleared,
//! so it is never too low. Hints say where to look first, and may be wrong.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};

/// The order of the largest blocks: 2 MiB.
pub(crate) const MAX_ORDER: u32 = 9;

/// What is known of the blocks of one order.
#[derive(Default)]
#[repr(align(64))]
struct Order {
    /// Where its bitmap begins in the table.
    start: usize,
    /// At least as many as there are bits set.
    blocks: AtomicUsize,
    /// The word of its bitmap to search first; likely, none before it has a bit set.
    hint: AtomicUsize,
}

/// Hands out blocks of pages; any thread may take and give back at any time.
///
/// Fresh pages are taken only when no block that was in use before will do, so that tables indexed by
/// pages stay as small as what is in use.
pub(crate) struct Buddy<T> {
    table: T,
    pages: usize,
    free: AtomicUsize,
    /// Blocks of the highest order below which pages are not fresh.
    mark: AtomicUsize,
    orders: [Order; MAX_ORDER as usize + 1],
}

impl<T: Deref<Target = [AtomicU64]>> Buddy<T> {
    /// Words of the table for `pages`.
    pub(crate) fn words(pages: usize) -> usize {
        (0..=MAX_ORDER).map(|order| words_of(pages, order)).sum()
    }

    /// All of `pages` free. `table` is zero, and stays untouched where no page has been in use.
    pub(crate) fn new(table: T, pages: usize) -> Self {
        assert!(table.len() >= Self::words(pages));
        let mut orders: [Order; _] = Default::default();
        let mut start = 0;
        for (order, state) in (0..).zip(&mut orders) {
            state.start = start;
            start += words_of(pages, order);
        }
        Self {
            table,
            pages,
            free: AtomicUsize::new(pages),
            mark: AtomicUsize::new(0),
            orders,
        }
    }

    /// The first page of a block of 2^`order` pages, aligned to its size.
    ///
    /// For order 0, `None` means that every page is in use or reserved by another caller, and a call
    /// may wait while the last free pages are in the hands of others that split or merge. For
    /// higher orders nothing is waited for: `None` may also mean that others were at work on the
    /// last such block.
    pub(crate) fn take(&self, order: u32) -> Option<usize> {
        debug_assert!(order <= MAX_ORDER);
        if (order > 0 && self.lacks(order)) || !self.reserve(1 << order) {
            return None;
        }
        loop {
            let found = (order..=MAX_ORDER).find_map(|at| Some((at, self.search(at)?)));
            if let Some((at, index)) = found {
                self.split(index << at, at, order);
                return Some(index << at);
            }
            if self.grow() {
                continue;
            }
            if order > 0 {
                self.free.fetch_add(1 << order, AcqRel);
                return None;
            }
            std::thread::yield_now();
        }
    }

    /// Takes this page, if it is free. May fail also while others are at work on a block around it.
    pub(crate) fn take_at(&self, page: usize) -> bool {
        if page >= self.pages || !self.reserve(1) {
            return false;
        }
        while page >= self.high_water() && self.grow() {}
        let found = (0..=MAX_ORDER).find(|&order| self.clear(order, page >> order));
        match found {
            Some(order) => self.split(page, order, 0),
            None => _ = self.free.fetch_add(1, AcqRel),
        }
        found.is_some()
    }

    /// Gives a block back: one that was taken, or any part of one.
    pub(crate) fn give(&self, page: usize, order: u32) {
        debug_assert!(page.is_multiple_of(1 << order) && page + (1 << order) <= self.high_water());
        debug_assert!(
            (order..=MAX_ORDER).all(|order| {
                let (word, bit) = self.place(order, page >> order);
                word.load(Acquire) & bit == 0
            }),
            "page {page} freed twice (R4)"
        );
        let mut at = order;
        while self.merge(at, page >> at) {
            at += 1;
        }
        let was = self.free.fetch_add(1 << order, AcqRel);
        debug_assert!(was + (1 << order) <= self.pages);
    }

    /// Pages that are free and not reserved by a caller about to take them.
    #[cfg(test)]
    fn free_pages(&self) -> usize {
        self.free.load(Acquire)
    }

    /// Pages at or above this have never been handed out.
    pub(crate) fn high_water(&self) -> usize {
        (self.mark.load(Acquire) << MAX_ORDER).min(self.pages)
    }

    /// Whether no block of this order or above is to be seen: then a reservation is not worth it,
    /// which might keep another caller from a smaller one.
    fn lacks(&self, order: u32) -> bool {
        let mut higher = self.orders[order as usize..].iter();
        self.high_water() == self.pages && higher.all(|state| state.blocks.load(Acquire) == 0)
    }

    fn reserve(&self, pages: usize) -> bool {
        let rest = |free: usize| free.checked_sub(pages);
        self.free.try_update(AcqRel, Acquire, rest).is_ok()
    }

    /// The word and the bit of a block.
    fn place(&self, order: u32, index: usize) -> (&AtomicU64, u64) {
        let word = self.orders[order as usize].start + index / 64;
        (&self.table[word], 1 << (index % 64))
    }

    /// Takes the next block that is fresh, and makes it free. Returns whether any was left.
    fn grow(&self) -> bool {
        let higher = |mark| (mark << MAX_ORDER < self.pages).then_some(mark + 1);
        let Ok(block) = self.mark.try_update(AcqRel, Acquire, higher) else {
            return false;
        };
        let mut page = block << MAX_ORDER;
        let end = self.pages.min(page + (1 << MAX_ORDER));
        while page < end {
            // The whole, or what there is of the last one, largest part first.
            let order = (end - page).ilog2();
            self.set(order, page >> order);
            page += 1 << order;
        }
        true
    }

    /// Takes a block of exactly this order.
    fn search(&self, order: u32) -> Option<usize> {
        let state = &self.orders[order as usize];
        if state.blocks.load(Acquire) == 0 {
            return None;
        }
        // Loaded after the count, so that no block that was counted lies above it.
        let end = words_of(self.high_water(), order);
        let hint = state.hint.load(Relaxed);
        let mut words = (hint..end).chain(0..hint.min(end));
        words.find_map(|word| {
            loop {
                let bits = self.table[state.start + word].load(Acquire);
                if bits == 0 {
                    return None;
                }
                let index = word * 64 + bits.trailing_zeros() as usize;
                if self.clear(order, index) {
                    if word != hint {
                        let _ = state.hint.compare_exchange(hint, word, Relaxed, Relaxed);
                    }
                    return Some(index);
                }
            }
        })
    }

    /// Splits the block of order `from` around `page`, in hand, down to order `to`.
    fn split(&self, page: usize, from: u32, to: u32) {
        for order in (to..from).rev() {
            self.set(order, (page >> order) ^ 1);
        }
    }

    /// Sets the bit of a block in hand, whose buddy is in hand too or does not exist.
    fn set(&self, order: u32, index: usize) {
        let (word, bit) = self.place(order, index);
        self.orders[order as usize].blocks.fetch_add(1, AcqRel);
        let was = word.fetch_or(bit, AcqRel);
        debug_assert_eq!(was & bit, 0);
        self.lower_hint(order, index);
    }

    /// Clears the bit of a block, which is then in hand. Returns whether it was set.
    fn clear(&self, order: u32, index: usize) -> bool {
        let (word, bit) = self.place(order, index);
        let was = word.load(Acquire) & bit != 0 && word.fetch_and(!bit, AcqRel) & bit != 0;
        if was {
            self.orders[order as usize].blocks.fetch_sub(1, AcqRel);
        }
        was
    }

    /// Clears the bit of the buddy, and returns true: both are in hand. Or else sets the block's.
    fn merge(&self, order: u32, index: usize) -> bool {
        let (word, bit) = self.place(order, index);
        let blocks = &self.orders[order as usize].blocks;
        let buddy = u64::from(order < MAX_ORDER) << ((index ^ 1) % 64);
        blocks.fetch_add(1, AcqRel);
        let was = word.update(AcqRel, Acquire, |bits| match bits & buddy {
            0 => bits | bit,
            _ => bits & !buddy,
        });
        let merges = was & buddy != 0;
        if merges {
            blocks.fetch_sub(2, AcqRel);
        } else {
            self.lower_hint(order, index);
        }
        merges
    }

    fn lower_hint(&self, order: u32, index: usize) {
        let hint = &self.orders[order as usize].hint;
        if hint.load(Relaxed) > index / 64 {
            hint.fetch_min(index / 64, Relaxed);
        }
    }
}

/// Words of one order's bitmap.
fn words_of(pages: usize, order: u32) -> usize {
    pages.div_ceil(64 << order)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Table = Vec<AtomicU64>;
    const BLOCK: usize = 1 << MAX_ORDER;

    fn buddy(pages: usize) -> Buddy<Table> {
        let words = 0..Buddy::<Table>::words(pages);
        Buddy::new(words.map(|_| AtomicU64::new(0)).collect(), pages)
    }

    fn assert_whole(buddy: &Buddy<Table>) {
        assert_eq!(buddy.free_pages(), buddy.pages);
        while buddy.grow() {}
        for order in 0..=MAX_ORDER {
            let parts = if order < MAX_ORDER { 2 } else { usize::MAX };
            let state = &buddy.orders[order as usize];
            let words = &buddy.table[state.start..][..words_of(buddy.pages, order)];
            let ones = |word: &AtomicU64| word.load(SeqCst).count_ones() as usize;
            let set: usize = words.iter().map(ones).sum();
            assert_eq!(set, (buddy.pages >> order) % parts);
            assert_eq!(state.blocks.load(SeqCst), set);
        }
    }

    fn random(state: &mut u64) -> usize {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 16) as usize
    }

    #[test]
    fn hands_out_each_page_once_lowest_first() {
        for pages in [0, 1, 511, 512, 513, 3 * 512 + 77] {
            let buddy = buddy(pages);
            let whole = pages - pages % BLOCK;
            assert!((0..whole).all(|page| buddy.take(0) == Some(page)));
            let mut rest: Vec<_> = std::iter::from_fn(|| buddy.take(0)).collect();
            rest.sort_unstable();
            assert_eq!(rest, (whole..pages).collect::<Vec<_>>());
            assert_eq!(buddy.free_pages(), 0);
            (0..pages).for_each(|page| buddy.give(page, 0));
            assert_whole(&buddy);
        }
    }

    #[test]
    fn stays_low_while_pages_below_are_free() {
        let buddy = buddy(100 * BLOCK + 1);
        for order in (0..=MAX_ORDER).cycle().take(10_000) {
            assert_eq!(buddy.take(order), Some(0));
            buddy.give(0, order);
        }
        assert_eq!(buddy.high_water(), BLOCK);
    }

    #[test]
    fn a_block_given_back_page_by_page_merges() {
        let buddy = buddy(2 * BLOCK);
        assert_eq!(buddy.take(MAX_ORDER), Some(0));
        assert_eq!(buddy.take(0), Some(BLOCK));
        assert_eq!(buddy.take(MAX_ORDER), None);
        (0..BLOCK).for_each(|i| buddy.give(i * 77 % BLOCK, 0));
        assert_eq!(buddy.take(MAX_ORDER), Some(0));
        buddy.give(BLOCK, 0);
        buddy.give(0, MAX_ORDER);
        assert_whole(&buddy);
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "freed twice")]
    fn a_second_give_is_seen() {
        let buddy = buddy(BLOCK);
        assert_eq!(buddy.take(1), Some(0));
        buddy.give(0, 1);
        buddy.give(1, 0);
    }

    #[test]
    fn does_as_a_naive_model_does() {
        for (pages, seed) in [(BLOCK, 1), (4 * BLOCK + 300, 2), (1023, 3)] {
            let (buddy, mut seed) = (buddy(pages), seed);
            let mut free = vec![true; pages];
            let mut held = Vec::new();
            for _ in 0..20_000 {
                let order = random(&mut seed) as u32 % (MAX_ORDER + 1);
                let got = match random(&mut seed) % 4 {
                    0 => {
                        let mut blocks = free.chunks_exact(1 << order);
                        let any = blocks.any(|block| block.iter().all(|&free| free));
                        let got = buddy.take(order);
                        assert_eq!(got.is_some(), any);
                        got.map(|page| (page, order))
                    }
                    1 => {
                        let page = random(&mut seed) % pages;
                        assert_eq!(buddy.take_at(page), free[page]);
                        free[page].then_some((page, 0))
                    }
                    _ if held.is_empty() => None,
                    _ => {
                        let (page, order) = held.swap_remove(random(&mut seed) % held.len());
                        free[page..][..1usize << order].fill(true);
                        buddy.give(page, order);
                        None
                    }
                };
                if let Some((page, order)) = got {
                    assert!(page.is_multiple_of(1 << order));
                    for free in &mut free[page..][..1usize << order] {
                        assert!(std::mem::take(free), "a page of {page} handed out twice");
                    }
                    held.push((page, order));
                }
                assert_eq!(
                    buddy.free_pages(),
                    free.iter().filter(|&&free| free).count()
                );
            }
            held.iter()
                .for_each(|&(page, order)| buddy.give(page, order));
            assert_whole(&buddy);
        }
    }

    #[test]
    fn threads_never_share_a_page_nor_miss_one() {
        for (pages, highest) in [(4, 0), (300, 3), (8 * BLOCK + 99, MAX_ORDER)] {
            let buddy = buddy(pages);
            let owned: Table = (0..pages).map(|_| AtomicU64::new(0)).collect();
            std::thread::scope(|scope| {
                for seed in 1..=4 {
                    let (buddy, owned) = (&buddy, &owned);
                    scope.spawn(move || take_and_give(buddy, owned, highest, seed));
                }
            });
            assert_whole(&buddy);
        }
    }

    /// At random, up to a quarter of all pages at a time.
    fn take_and_give(buddy: &Buddy<Table>, owned: &Table, highest: u32, mut seed: u64) {
        let own = |page: usize, order: u32, by: u64| {
            for owner in &owned[page..][..1usize << order] {
                assert_eq!(owner.swap(by, SeqCst), 1 - by, "{page} handed out twice");
            }
        };
        let (mut held, mut left) = (Vec::new(), buddy.pages / 4);
        for _ in 0..50_000 {
            let order = random(&mut seed) as u32 % (highest + 1);
            if random(&mut seed).is_multiple_of(2) && left >= 1 << order {
                let taken = if random(&mut seed).is_multiple_of(8) {
                    let page = random(&mut seed) % buddy.pages;
                    buddy.take_at(page).then_some((page, 0))
                } else {
                    let page = buddy.take(order);
                    assert!(page.is_some() || order > 0, "none of our own quarter");
                    page.map(|page| (page, order))
                };
                if let Some((page, order)) = taken {
                    own(page, order, 1);
                    held.push((page, order));
                    left -= 1 << order;
                }
            } else if !held.is_empty() {
                let (page, order) = held.swap_remove(random(&mut seed) % held.len());
                own(page, order, 0);
                left += 1 << order;
                match random(&mut seed) % 2 {
                    0 => buddy.give(page, order),
                    _ => (page..page + (1 << order)).for_each(|page| buddy.give(page, 0)),
                }
            }
        }
        held.iter().for_each(|&(page, order)| own(page, order, 0));
        held.iter()
            .for_each(|&(page, order)| buddy.give(page, order));
    }
}
