//! The frame pool's bookkeeping: which slots hold a frame, and how much RAM is in use.
//!
//! The pool is a mapping of its own, many slots larger than the budget, in blocks of 64 slots. A
//! slot is empty, or holds a frame. A frame is in limbo (it is still some page's, and the entry
//! names the slot) or free (warm memory to serve the next fault from).
//!
//! | `used` bit | `free` bit | slot |
//! | --- | --- | --- |
//! | 0 | 0 | empty |
//! | 1 | 0 | in limbo, or in the hands of whoever holds its [`Frame`] |
//! | 1 | 1 | holds a free frame |
//!
//! Clearing a `free` bit by compare-and-swap is what takes a free frame. Empty blocks are taken by
//! whoever holds the hand of reclaim, and filled run by run.
//!
//! Behind the blocks are the slots for frames that are exclusive to a device. They are no block's,
//! because they may be held for long: setting a `used` bit by compare-and-swap takes one, and none of
//! their frames is ever free.
//!
//! `charged` counts physical pages in existence: mapped by the program, in limbo or free. New memory
//! is charged before it is made, and only within the budget. Pages that exist by then (a few that a
//! fork brought in, one whose bytes had to be copied out of its frame) are counted even above it.

use crate::addr::{FrameNo, PageNo};
use crate::stats::Stats;
use std::ops::{Deref, Range};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};

/// Slots in a block: the most pages that one batch unmaps.
pub const BLOCK: usize = 64;

/// The sole right to use the frame in one slot of the pool. Only the pool makes one, and only
/// for a slot that holds a frame that nobody else has.
#[derive(Debug)]
pub struct Frame(FrameNo);

impl Frame {
    /// The frame's slot.
    pub fn slot(&self) -> FrameNo {
        self.0
    }
}

/// Slots of a pool for `budget_pages`.
pub const fn slots_for(budget_pages: usize) -> usize {
    block_slots_for(budget_pages) + exclusive_for(budget_pages)
}

/// Slots for frames that are exclusive to a device, for a budget: all of it could be.
const fn exclusive_for(budget_pages: usize) -> usize {
    budget_pages.next_multiple_of(BLOCK)
}

/// Slots in blocks, for `budget_pages`. Many more than frames, since a block whose frames go one by
/// one stays in use until the last has gone, and address space costs nothing.
pub(crate) const fn block_slots_for(budget_pages: usize) -> usize {
    let blocks = (8 * budget_pages).div_ceil(BLOCK);
    (if blocks < 512 { 512 } else { blocks }) * BLOCK
}

/// See the module's head.
pub(crate) struct FramePool<T> {
    budget: usize,
    /// Blocks; the words after them are of slots for exclusive frames.
    blocks: usize,
    charged: AtomicUsize,
    free_frames: AtomicUsize,
    used: T,
    free: T,
    /// For each slot: the page that it was taken from.
    owners: T,
    /// Blocks below which a used bit may be set.
    mark: AtomicUsize,
    /// No block below this is empty, or it will be lowered.
    empty_hint: AtomicUsize,
    /// Where the next search for a free frame begins.
    cursor: AtomicUsize,
}

impl<T: Deref<Target = [AtomicU64]>> FramePool<T> {
    pub(crate) fn new(budget: usize, table: impl Fn(usize) -> Option<T>) -> Option<Self> {
        let (blocks, words) = (block_slots_for(budget) / BLOCK, slots_for(budget) / BLOCK);
        Some(Self {
            budget,
            blocks,
            charged: AtomicUsize::new(0),
            free_frames: AtomicUsize::new(0),
            used: table(words)?,
            free: table(words)?,
            owners: table(slots_for(budget))?,
            mark: AtomicUsize::new(0),
            empty_hint: AtomicUsize::new(0),
            cursor: AtomicUsize::new(0),
        })
    }

    /// Pages of RAM that may be in use.
    pub(crate) fn budget(&self) -> usize {
        self.budget
    }

    /// Pages of RAM in use.
    pub(crate) fn charged(&self) -> usize {
        self.charged.load(Acquire)
    }

    /// Pages that could be had at once: not yet charged, or free frames.
    pub(crate) fn available(&self) -> usize {
        self.budget.saturating_sub(self.charged()) + self.free_frames()
    }

    pub(crate) fn free_frames(&self) -> usize {
        self.free_frames.load(Acquire)
    }

    /// Charges `pages` if the budget allows.
    pub(crate) fn try_charge(&self, pages: usize, stats: &Stats) -> bool {
        let room = |charged| (charged + pages <= self.budget).then_some(charged + pages);
        let done = self.charged.fetch_update(AcqRel, Acquire, room).is_ok();
        if done {
            self.count_ram(stats);
        }
        done
    }

    /// Charges `pages` that exist already, whatever the budget: pages that a fork brought in.
    pub(crate) fn charge_existing(&self, pages: usize, stats: &Stats) {
        self.charged.fetch_add(pages, AcqRel);
        self.count_ram(stats);
    }

    /// `pages` are gone.
    pub(crate) fn uncharge(&self, pages: usize, stats: &Stats) {
        let was = self.charged.fetch_sub(pages, AcqRel);
        debug_assert!(was >= pages, "more RAM is given back than was taken");
        self.count_ram(stats);
    }

    fn count_ram(&self, stats: &Stats) {
        let bytes = (self.charged() << crate::addr::PAGE_SHIFT) as u64;
        stats.ram_bytes.set(bytes);
        stats.ram_peak_bytes.raise(bytes);
    }

    /// Takes a free frame.
    pub(crate) fn take_free(&self) -> Option<Frame> {
        let mark = self.mark.load(Acquire);
        let start = self.cursor.load(Relaxed);
        for step in 0..mark {
            if self.free_frames() == 0 {
                return None;
            }
            let block = (start + step) % mark;
            let word = &self.free[block];
            let mut bits = word.load(Acquire);
            while bits != 0 {
                let bit = bits.trailing_zeros();
                match word.compare_exchange_weak(bits, bits & !(1 << bit), AcqRel, Acquire) {
                    Ok(_) => {
                        self.cursor.store(block, Relaxed);
                        self.free_frames.fetch_sub(1, AcqRel);
                        return Some(Frame(FrameNo((block * BLOCK) as u32 + bit)));
                    }
                    Err(now) => bits = now,
                }
            }
        }
        None
    }

    /// Gives a frame back, to serve another fault.
    pub(crate) fn put_free(&self, frame: Frame) {
        let (block, bit) = place(frame.0);
        debug_assert_ne!(self.used[block].load(Acquire) & bit, 0);
        // Counted first: a frame that can be seen is never missing from the count.
        self.free_frames.fetch_add(1, AcqRel);
        let was = self.free[block].fetch_or(bit, AcqRel);
        debug_assert_eq!(was & bit, 0, "{frame:?} freed twice (R4)");
    }

    /// The right to a frame in limbo, for who has claimed the entry that names its slot.
    pub(crate) fn claim_limbo(&self, slot: FrameNo) -> Frame {
        let (block, bit) = place(slot);
        debug_assert_ne!(
            self.used[block].load(Acquire) & bit,
            0,
            "{slot:?} holds no frame"
        );
        debug_assert_eq!(
            self.free[block].load(Acquire) & bit,
            0,
            "{slot:?} is free, not in limbo"
        );
        Frame(slot)
    }

    /// The frames of these slots have been moved into the space.
    pub(crate) fn moved_out(&self, first: FrameNo, len: usize) {
        for i in 0..len {
            let (block, bit) = place(first.plus(i));
            self.empty(block, bit);
        }
    }

    /// The slots `bits` of `block` are empty now.
    fn empty(&self, block: usize, bits: u64) {
        let was = self.used[block].fetch_and(!bits, AcqRel);
        if was & !bits == 0 {
            self.empty_hint.fetch_min(block, AcqRel);
        }
    }

    /// An empty block that `usable` agrees to, or `None` if there is none now. For one
    /// thread at a time: whoever has the lock on the queue of blocks.
    pub(crate) fn empty_block(&self, usable: impl Fn(u32) -> bool) -> Option<u32> {
        let mark = self.mark.load(Acquire);
        let hint = self.empty_hint.swap(mark, AcqRel);
        let is_empty = |&block: &usize| self.used[block].load(Acquire) == 0 && usable(block as u32);
        let found = (hint..mark).find(is_empty);
        let block = found.or_else(|| (mark < self.blocks).then_some(mark))?;
        self.mark.fetch_max(block + 1, AcqRel);
        // The caller may leave the block empty, so the hint stays on it.
        self.empty_hint.fetch_min(block, AcqRel);
        Some(block as u32)
    }

    /// `block` may be usable again: it is looked at by the next search if it is empty.
    pub(crate) fn reconsider(&self, block: u32) {
        if self.used[block as usize].load(Acquire) == 0 {
            self.empty_hint.fetch_min(block as usize, AcqRel);
        }
    }

    /// The frames of the pages from `page` on have been moved to the empty slots from `first` on,
    /// which lie in one block: they are in limbo.
    pub(crate) fn moved_in(&self, first: FrameNo, page: PageNo, len: usize) {
        if len == 0 {
            return;
        }
        for i in 0..len {
            self.owners[first.plus(i).0 as usize].store(page.plus(i).0, Release);
        }
        let (block, _) = place(first);
        self.used[block].fetch_or(run_of(first.0 as usize % BLOCK, len), AcqRel);
    }

    /// Reserves up to `most` empty slots, side by side, for frames of the pages from `page` on that
    /// become exclusive to a device; returns the first and how many.
    pub(crate) fn reserve_exclusive(&self, page: PageNo, most: usize) -> Option<(FrameNo, usize)> {
        for block in self.blocks..self.used.len() {
            let mut bits = self.used[block].load(Acquire);
            while bits != u64::MAX {
                let first = bits.trailing_ones() as usize;
                let len = ((bits >> first).trailing_zeros() as usize)
                    .min(64 - first)
                    .min(most);
                let taken = run_of(first, len);
                match self.used[block].compare_exchange_weak(bits, bits | taken, AcqRel, Acquire) {
                    Ok(_) => {
                        let slot = FrameNo((block * BLOCK + first) as u32);
                        for i in 0..len {
                            let owner = &self.owners[slot.plus(i).0 as usize];
                            owner.store(page.plus(i).0, Release);
                        }
                        return Some((slot, len));
                    }
                    Err(now) => bits = now,
                }
            }
        }
        None
    }

    /// The pages whose frames are exclusive to a device, or were a moment ago.
    pub(crate) fn exclusive_owners(&self) -> impl Iterator<Item = PageNo> {
        (self.blocks..self.used.len()).flat_map(move |block| {
            let used = self.used[block].load(Acquire);
            let slots = (0..BLOCK).filter(move |bit| used >> bit & 1 != 0);
            slots.map(move |bit| self.owner(FrameNo((block * BLOCK + bit) as u32)))
        })
    }

    /// How many slots for exclusive frames are taken.
    pub(crate) fn exclusive_frames(&self) -> usize {
        let words = self.used[self.blocks..].iter();
        words
            .map(|word| word.load(Acquire).count_ones() as usize)
            .sum()
    }

    /// The page whose frame was moved to `slot` last. Whether it still is the page's is for the
    /// page's entry to say.
    pub(crate) fn owner(&self, slot: FrameNo) -> PageNo {
        PageNo(self.owners[slot.0 as usize].load(Acquire))
    }

    /// Which slots of `block` hold a frame in limbo (or in somebody's hands).
    pub(crate) fn in_limbo(&self, block: u32) -> u64 {
        let used = self.used[block as usize].load(Acquire);
        used & !self.free[block as usize].load(Acquire)
    }

    /// Takes all free frames of `block` out of the pool, calls `drop` for each run of their slots,
    /// which must give the memory back, and lowers the charge.
    pub(crate) fn shed(&self, block: u32, stats: &Stats, mut drop: impl FnMut(FrameNo, usize)) {
        let bits = self.free[block as usize].swap(0, AcqRel);
        let count = bits.count_ones() as usize;
        if count == 0 {
            return;
        }
        self.free_frames.fetch_sub(count, AcqRel);
        for run in runs(bits) {
            drop(first_slot(block).plus(run.start), run.len());
        }
        self.empty(block as usize, bits);
        self.uncharge(count, stats);
    }

    /// Blocks that may hold frames.
    pub(crate) fn blocks(&self) -> Range<u32> {
        0..self.mark.load(Acquire) as u32
    }
}

/// The first slot of `block`.
pub(crate) fn first_slot(block: u32) -> FrameNo {
    FrameNo(block * BLOCK as u32)
}

/// The block that `slot` is in, and its bit there.
pub(crate) fn place(slot: FrameNo) -> (usize, u64) {
    (slot.0 as usize / BLOCK, 1 << (slot.0 as usize % BLOCK))
}

/// `len` set bits from `start` on.
fn run_of(start: usize, len: usize) -> u64 {
    u64::MAX >> (BLOCK - len) << start
}

/// The maximal runs of set bits, in ascending order.
fn runs(mut bits: u64) -> impl Iterator<Item = Range<usize>> {
    std::iter::from_fn(move || {
        (bits != 0).then(|| {
            let start = bits.trailing_zeros() as usize;
            let len = (bits >> start).trailing_ones() as usize;
            let run = run_of(start, len);
            bits &= !run;
            start..start + len
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(budget: usize) -> (FramePool<Vec<AtomicU64>>, Stats) {
        let table = |n: usize| Some((0..n).map(|_| AtomicU64::new(0)).collect());
        (FramePool::new(budget, table).unwrap(), Stats::default())
    }

    #[test]
    fn the_budget_is_hard() {
        let (pool, stats) = pool(100);
        assert!(pool.try_charge(60, &stats));
        assert!(!pool.try_charge(41, &stats));
        assert!(pool.try_charge(40, &stats));
        assert_eq!(pool.available(), 0);
        pool.uncharge(100, &stats);
        assert_eq!(stats.ram_peak_bytes.get(), 100 * 4096);
    }

    #[test]
    fn a_frame_goes_from_limbo_to_free_to_use() {
        let (pool, stats) = pool(100);
        assert!(pool.try_charge(3, &stats));
        let block = pool.empty_block(|_| true).unwrap();
        pool.moved_in(first_slot(block), PageNo(7), 3);
        assert_eq!(pool.owner(first_slot(block).plus(2)), PageNo(9));
        assert_ne!(pool.empty_block(|_| true).unwrap(), block);
        assert_eq!(pool.in_limbo(block), 0b111);
        pool.put_free(pool.claim_limbo(first_slot(block).plus(1)));
        assert_eq!(pool.in_limbo(block), 0b101);
        let frame = pool.take_free().unwrap();
        assert_eq!(frame.slot(), first_slot(block).plus(1));
        assert!(pool.take_free().is_none());
        pool.moved_out(frame.slot(), 1);
        pool.moved_out(first_slot(block), 1);
        pool.put_free(pool.claim_limbo(first_slot(block).plus(2)));
        let mut dropped = Vec::new();
        pool.shed(block, &stats, |slot, len| dropped.push((slot, len)));
        assert_eq!(dropped, [(first_slot(block).plus(2), 1)]);
        assert_eq!(pool.empty_block(|_| true).unwrap(), block);
        assert_eq!(pool.charged(), 2);
    }

    #[test]
    fn slots_for_exclusive_frames_are_no_blocks() {
        let (pool, _) = pool(100);
        let (first, len) = pool.reserve_exclusive(PageNo(5), 3).unwrap();
        assert_eq!((first.0 as usize, len), (block_slots_for(100), 3));
        let (more, len) = pool.reserve_exclusive(PageNo(50), 500).unwrap();
        assert_eq!((more, len), (first.plus(3), BLOCK - 3));
        pool.moved_out(first.plus(1), 1);
        assert_eq!(
            pool.reserve_exclusive(PageNo(9), 64).unwrap(),
            (first.plus(1), 1)
        );
        let owners: Vec<_> = pool.exclusive_owners().take(4).collect();
        assert_eq!(owners, [PageNo(5), PageNo(9), PageNo(7), PageNo(50)]);
        assert_eq!(pool.exclusive_frames(), BLOCK);
        assert_eq!(pool.reserve_exclusive(PageNo(99), 64).unwrap().1, BLOCK);
        assert!(pool.reserve_exclusive(PageNo(99), 1).is_none());
        assert_eq!(pool.empty_block(|_| true), Some(0));
    }

    #[test]
    fn runs_cover_every_bit() {
        assert_eq!(runs(u64::MAX).collect::<Vec<_>>(), vec![0..64]);
        assert_eq!(runs(0b1101 << 60).collect::<Vec<_>>(), vec![60..61, 62..64]);
        assert_eq!(runs(0).count(), 0);
    }
}
