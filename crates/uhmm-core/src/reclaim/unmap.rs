//! The first half of reclaim: cold pages are moved out of the space, into limbo.
//!
//! The hand passes pages by that prefer RAM ([`crate::hints`]) as long as there are others. When it has
//! come all the way round without any, and limbo is empty, it takes those too: a hint never leaves a fault
//! without RAM (R19).

use crate::addr::{Home, PageNo, PageRange};
use crate::claims::Run;
use crate::entry::{State, Word};
use crate::fault::Scratch;
use crate::frames::{BLOCK, first_slot};
use crate::hints::Preferred;
use crate::mirror::Event;
use crate::mmu::{Mmu, Stop};
use crate::protection::Fixed;
use crate::space::Space;
use std::sync::atomic::Ordering::Relaxed;

/// How many young pages in a row the hand passes by (R20). Where there are none but young ones, because
/// the program goes through its budget within the minimum stay, they are taken as they come.
pub(super) const SPARED: usize = BLOCK;

/// How much one call may do.
pub(super) struct Effort<'a, 's> {
    /// Pages that it unmaps; at most what is left of a block.
    pub(super) pages: usize,
    /// Entries that it looks at.
    pub(super) look: usize,
    /// Young pages in a row that it passes by.
    pub(super) spare: usize,
    /// For pages of ranges that are not writable: their eviction copies them to a device at once,
    /// which is not for a fault handler (R18).
    pub(super) scratch: Option<&'a mut Scratch<'s>>,
}

/// What one call has done.
pub(super) struct Done {
    /// Pages that are in limbo, or on a device.
    pub(super) pages: usize,
    /// Whether there may be more to find for a further call.
    pub(super) more: bool,
}

/// Where unmapping goes on, and the block that it fills.
pub(super) struct Hand {
    /// Where it looks: over and over again, or once through.
    range: PageRange,
    /// It takes all that it meets, once through.
    everything: bool,
    pub(super) at: PageNo,
    block: Option<u32>,
    filled: usize,
    /// Times it has come round since it found a page to take, or one that may be taken another time.
    turns: u8,
    /// Pages that prefer RAM were passed by since another was found.
    passed: bool,
    /// There are pages in the block that do not prefer RAM.
    others: bool,
    /// Young pages met since the last that was not.
    spared: usize,
}

impl Hand {
    /// Turns after which pages are taken that prefer RAM: a part of a round, and a whole one.
    const PATIENT: u8 = 2;

    pub(super) fn new(range: PageRange) -> Self {
        Self {
            range,
            everything: false,
            at: range.start,
            block: None,
            filled: 0,
            turns: 0,
            passed: false,
            others: false,
            spared: 0,
        }
    }

    /// One that takes all pages of `range`, hot or cold.
    pub(super) fn once_over(range: PageRange) -> Self {
        Self {
            everything: true,
            ..Self::new(range)
        }
    }

    /// Turns after which there is nothing to find. The first round takes second chances away.
    fn most_turns(&self) -> u8 {
        match (self.everything, self.passed) {
            (true, _) => 1,
            (false, false) => 2,
            (false, true) => Self::PATIENT + 2,
        }
    }

    /// The block that it has filled so far, if it has one.
    pub(super) fn give_block_up(&mut self) -> Option<u32> {
        self.filled = 0;
        self.others = false;
        self.block.take()
    }

    /// Begins the next round.
    fn turn(&mut self) {
        self.turns = self.turns.saturating_add(1);
        self.at = if self.everything {
            self.range.end()
        } else {
            self.range.start
        };
    }

    /// Whether pages that prefer RAM are to be passed by.
    fn may_find_others(&self) -> bool {
        self.turns < Self::PATIENT || self.others
    }

    /// A page was found to take, or one that may be taken another time.
    fn found(&mut self, prefers_ram: bool) {
        if prefers_ram {
            self.turns = Self::PATIENT;
        } else {
            self.turns = 0;
            self.passed = false;
        }
    }
}

impl<M: Mmu> Space<M> {
    /// Unmaps a few pages if RAM is short. For a fault handler, before it serves a fault, inside the
    /// gate.
    pub(crate) fn unmap_ahead(&self) {
        let reclaim = &self.reclaim;
        if self.pool.available() < reclaim.pressure.high
            && reclaim.wants_limbo()
            && let Some(mut hand) = reclaim.hand.try_lock()
        {
            let effort = Effort {
                pages: 16,
                look: 256,
                spare: SPARED,
                scratch: None,
            };
            self.unmap_some(&mut hand, effort);
            if hand.filled == BLOCK {
                self.queue_block(&mut hand);
            }
        }
    }

    /// Unmaps up to a block of pages, and leaves the block to be cleaned even if it is not full; passes by
    /// up to `spare` young pages in a row. `false`: there was nothing that could be unmapped. `None`:
    /// somebody else is at it.
    pub(super) fn unmap_block(&self, spare: usize, scratch: &mut Scratch) -> Option<bool> {
        let mut hand = self.reclaim.hand.try_lock()?;
        let effort = Effort {
            pages: BLOCK,
            look: 1 << 15,
            spare,
            scratch: Some(scratch),
        };
        let done = self.unmap_some(&mut hand, effort);
        let some = hand.filled > 0;
        if some {
            self.queue_block(&mut hand);
        }
        Some(some || done.pages > 0 || done.more)
    }

    /// Gives the hand's block to the queue.
    fn queue_block(&self, hand: &mut Hand) {
        if let Some(block) = hand.give_block_up() {
            self.reclaim.queue.lock().blocks.push_back(block);
            self.reclaim.limbo_slots.fetch_add(BLOCK, Relaxed);
        }
    }

    /// Finds cold pages and takes them out, until the hand's block is full.
    pub(super) fn unmap_some(&self, hand: &mut Hand, mut effort: Effort<'_, '_>) -> Done {
        let now = self.stamp();
        let (mut turns, mut looked, mut out) = (0, 0, 0);
        while turns < hand.most_turns()
            && looked < effort.look
            && out < effort.pages
            && hand.filled < BLOCK
        {
            let Some(page) = self.entries.next_mapped(hand.at, hand.range.end()) else {
                hand.turn();
                turns += 1;
                continue;
            };
            looked += 1;
            let (hints, end) = self.hints.run(page);
            let everything = hand.everything;
            let prefers_ram = !everything && hints.preferred == Some(Preferred::Ram);
            if prefers_ram && (hand.may_find_others() || self.reclaim.limbo_slots.load(Relaxed) > 0)
            {
                hand.passed = true;
                hand.at = end;
                continue;
            }
            hand.at = page.plus(1);
            let seen = self.entries.load(page);
            let young = seen.stamp().is_young(now);
            if matches!(seen.state(), State::System { .. }) {
                if young && hand.spared < effort.spare {
                    hand.spared += 1;
                    hand.found(prefers_ram);
                    continue;
                }
                // Once too many were spared, they are taken until one is met that is not young.
                hand.spared = if young { hand.spared } else { 0 };
            }
            match seen.state() {
                State::System {
                    referenced: true, ..
                } if !everything => {
                    self.entries.clear_referenced(page, seen);
                    hand.found(prefers_ram);
                }
                State::System { duplicate, .. } => {
                    let Some(block) = self.hand_block(hand) else {
                        return Done {
                            pages: out,
                            more: false,
                        };
                    };
                    let room = (BLOCK - hand.filled).min(effort.pages - out);
                    let room = room.min((hand.range.end().0 - page.0) as usize);
                    let clean = duplicate.is_some();
                    let same = |i| page.plus(i) < end || self.hints.of(page.plus(i)) == hints;
                    let cold = |i, seen: Word| {
                        matches!(seen.state(), State::System { referenced, duplicate }
                            if (everything || !referenced) && duplicate.is_some() == clean)
                            && (everything || young || !seen.stamp().is_young(now))
                            && same(i)
                    };
                    let run = Run::collect_if(self, page, room, cold);
                    let left = match duplicate {
                        None => self.unmap(hand, block, run, effort.scratch.as_deref_mut()),
                        Some(_) => self.unmap_clean(hand, block, run),
                    };
                    out += left;
                    if left > 0 {
                        hand.found(prefers_ram);
                        hand.others |= !prefers_ram && hand.filled > 0;
                    }
                }
                _ => {}
            }
        }
        Done {
            pages: out,
            more: hand.turns < hand.most_turns(),
        }
    }

    /// The block that the hand fills.
    fn hand_block(&self, hand: &mut Hand) -> Option<u32> {
        if hand.block.is_none() {
            hand.block = Some(self.take_block()?);
            hand.filled = 0;
        }
        hand.block
    }

    /// An empty block of the pool, to move frames to. It is the caller's until it is queued or ended.
    pub(crate) fn take_block(&self) -> Option<u32> {
        let mut queue = self.reclaim.queue.lock();
        let block = self.pool.empty_block(|block| !queue.busy[block as usize])?;
        queue.busy[block as usize] = true;
        Some(block)
    }

    /// Ends the use of a block: the memory of its free frames goes back to the machine; if pages are
    /// left in it, they are in limbo.
    pub(crate) fn end_block(&self, block: u32) {
        self.pool.shed(block, self.stats(), |slot, len| {
            self.mmu.drop_frames(slot, len)
        });
        let mut queue = self.reclaim.queue.lock();
        if self.pool.in_limbo(block) == 0 {
            queue.busy[block as usize] = false;
            self.pool.reconsider(block);
        } else {
            queue.blocks.push_back(block);
            self.reclaim.limbo_slots.fetch_add(BLOCK, Relaxed);
        }
    }

    /// Takes the pages of `run` out of the space, into limbo. Returns how many left.
    fn unmap(
        &self,
        hand: &mut Hand,
        block: u32,
        mut run: Run<'_, M>,
        scratch: Option<&mut Scratch>,
    ) -> usize {
        let before = hand.filled;
        let mut unshared = false;
        hand.at = run.pages().end().max(hand.at);
        self.notify(run.pages(), Event::Migrate);
        let stop = loop {
            let pages = run.pages();
            let first = first_slot(block).plus(hand.filled);
            let progress = self.mmu.take(pages, Home::Pool(first));
            // The slots are marked before an entry names them.
            self.pool.moved_in(first, pages.start, progress.pages);
            run.settle(progress.pages, |i| State::Limbo(first.plus(i)));
            hand.filled += progress.pages;
            match progress.stop {
                // Shared after a fork, most likely: with copies of its own, the run can go on.
                Some(Stop::Busy) if !unshared => {
                    self.mmu.unshare(run.pages());
                    unshared = true;
                }
                stop => break stop,
            }
        };
        let mut out = hand.filled - before;
        if let Some(stop) = stop {
            // A handler passes by what is not writable: it can do nothing there, and the whole run is so.
            if stop != Stop::Protected || scratch.is_some() {
                hand.at = run.pages().start.plus(1);
            }
            run.truncate(1);
            out += usize::from(self.unmap_odd(run, stop, scratch));
        }
        out
    }

    /// Takes the pages of `run` out of the space, which a device has the bytes of: nothing is copied,
    /// and nothing is left to do. Returns how many left.
    ///
    /// They are moved out, not dropped, because the kernel then refuses what is pinned (R7).
    fn unmap_clean(&self, hand: &mut Hand, block: u32, mut run: Run<'_, M>) -> usize {
        let kept = |&i: &usize| run.was(i).device_page().is_some_and(|at| self.keeps(at));
        let kept = (0..run.pages().len).take_while(kept).count();
        if kept == 0
            && let Some(odd) = run.pop()
        {
            // The device has failed, or pages are to leave it: nothing goes there, this neither (R9).
            self.give_duplicate_up(odd);
            return 0;
        }
        run.truncate(kept);
        let pages = run.pages();
        hand.at = pages.end().max(hand.at);
        self.notify(pages, Event::Migrate);
        let first = first_slot(block).plus(hand.filled);
        let progress = self.mmu.take(pages, Home::Pool(first));
        self.pool.moved_in(first, pages.start, progress.pages);
        hand.filled += progress.pages;
        let duplicates = arrayvec::ArrayVec::<_, BLOCK>::from_iter(
            (0..progress.pages).map(|i| run.was(i).device_page().expect("a page with a duplicate")),
        );
        run.settle(progress.pages, |i| State::Private(duplicates[i]));
        for i in 0..progress.pages {
            self.pool.put_free(self.pool.claim_limbo(first.plus(i)));
        }
        self.count_duplicates(-(progress.pages as isize));
        self.stats().clean_evictions.add(progress.pages as u64);
        let odd = progress.stop.and_then(|_| run.pop());
        drop(run);
        if let Some(odd) = odd {
            hand.at = odd.page().plus(1);
            // Pinned, shared after a fork, or not writable: from now on it is a page like others.
            self.give_duplicate_up(odd);
        }
        progress.pages
    }

    /// The one page of `run` cannot be moved, because of `stop`. Returns whether it left RAM.
    fn unmap_odd(&self, run: Run<'_, M>, stop: Stop, scratch: Option<&mut Scratch>) -> bool {
        match stop {
            Stop::Absent => self.forget_absent(run),
            Stop::Protected => scratch.is_some_and(|scratch| self.evict_protected(run, scratch)),
            Stop::Busy => {
                self.stats().busy_pages.add(1);
                false
            }
            _ => false,
        }
    }

    /// The page was dropped behind our back: it reads as zero from now on.
    fn forget_absent(&self, mut run: Run<'_, M>) -> bool {
        run.settle(1, |_| State::None);
        self.pool.uncharge(1, self.stats());
        true
    }

    /// A page of a range that is not writable cannot be moved, but nobody can change it either: it
    /// is read, stored and dropped. The protection must not change meanwhile.
    fn evict_protected(&self, mut run: Run<'_, M>, scratch: &mut Scratch) -> bool {
        let Some(held) = self.protection.hold() else {
            return false;
        };
        let page = run.pages().start;
        match self.read_fixed(&held, page, &mut scratch.pages[0]) {
            Fixed::Absent => return self.forget_absent(run),
            Fixed::Leave => return false,
            Fixed::Read => {}
        }
        let Some(at) = self.store_anywhere(page, &scratch.pages[0]) else {
            return false;
        };
        self.mmu.discard(run.pages());
        run.settle(1, |_| State::Private(at));
        self.pool.uncharge(1, self.stats());
        true
    }
}
