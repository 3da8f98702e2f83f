//! The first half of reclaim: cold pages are moved out of the space, into limbo.

use crate::addr::PageNo;
use crate::entry::State;
use crate::fault::Scratch;
use crate::frames::{BLOCK, first_slot};
use crate::migrate::Run;
use crate::mmu::{Mmu, Stop};
use crate::space::Space;
use std::sync::atomic::Ordering::Relaxed;

/// How much one call may do.
struct Effort<'a> {
    /// Pages that it unmaps.
    pages: usize,
    /// Entries that it looks at.
    look: usize,
    /// For pages of ranges that are not writable: their eviction copies them to a device at once,
    /// which is not for a fault handler (R18).
    scratch: Option<&'a mut Scratch>,
}

/// What one call has done.
struct Done {
    /// Pages that are in limbo, or on a device.
    pages: usize,
    /// Whether there may be more to find for a further call.
    more: bool,
}

/// Where unmapping goes on, and the block that it fills.
pub(super) struct Hand {
    at: PageNo,
    block: Option<u32>,
    filled: usize,
}

impl Hand {
    pub(super) fn new(at: PageNo) -> Self {
        Self {
            at,
            block: None,
            filled: 0,
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
                scratch: None,
            };
            self.unmap_some(&mut hand, effort);
        }
    }

    /// Unmaps up to a block of pages, and leaves the block to be cleaned even if it is not full.
    /// `false`: there was nothing to unmap, or somebody else is at it.
    pub(super) fn unmap_block(&self, scratch: &mut Scratch) -> bool {
        let Some(mut hand) = self.reclaim.hand.try_lock() else {
            return false;
        };
        let effort = Effort {
            pages: BLOCK,
            look: 1 << 15,
            scratch: Some(scratch),
        };
        let done = self.unmap_some(&mut hand, effort);
        let some = hand.filled > 0;
        if some {
            self.queue_block(&mut hand);
        }
        some || done.pages > 0 || done.more
    }

    /// Gives the hand's block to the queue.
    fn queue_block(&self, hand: &mut Hand) {
        if let Some(block) = hand.block.take() {
            self.reclaim.queue.lock().blocks.push_back(block);
            self.reclaim.limbo_slots.fetch_add(BLOCK, Relaxed);
            hand.filled = 0;
        }
    }

    /// Finds cold pages and takes them out.
    fn unmap_some(&self, hand: &mut Hand, mut effort: Effort<'_>) -> Done {
        let range = self.range();
        let (mut wraps, mut looked, mut out) = (0, 0, 0);
        while wraps < 2 && looked < effort.look && out < effort.pages {
            let Some(page) = self.entries.next_mapped(hand.at, range.end()) else {
                hand.at = range.start;
                wraps += 1;
                continue;
            };
            hand.at = page.plus(1);
            looked += 1;
            let seen = self.entries.load(page);
            match seen.state() {
                State::System { referenced: true } => self.entries.clear_referenced(page, seen),
                State::System { referenced: false } => {
                    let Some(block) = self.hand_block(hand) else {
                        break;
                    };
                    let room = (BLOCK - hand.filled).min(effort.pages - out);
                    let cold = |_, state| state == State::System { referenced: false };
                    let run = Run::collect(self, page, room, cold);
                    out += self.unmap(hand, block, run, effort.scratch.as_deref_mut());
                    if hand.filled == BLOCK {
                        self.queue_block(hand);
                    }
                }
                _ => {}
            }
        }
        Done {
            pages: out,
            more: looked >= effort.look,
        }
    }

    /// The block that the hand fills.
    fn hand_block(&self, hand: &mut Hand) -> Option<u32> {
        if hand.block.is_none() {
            let mut queue = self.reclaim.queue.lock();
            let block = self.pool.empty_block(|block| !queue.busy[block as usize])?;
            queue.busy[block as usize] = true;
            hand.block = Some(block);
            hand.filled = 0;
        }
        hand.block
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
        let stop = loop {
            let pages = run.pages();
            let first = first_slot(block).plus(hand.filled);
            let progress = self.mmu.take(pages, first);
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
            hand.at = run.pages().start.plus(1);
            run.truncate(1);
            out += usize::from(self.unmap_odd(run, stop, scratch));
        }
        out
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
        let Some(_fixed) = self.protection.hold() else {
            return false;
        };
        let page = run.pages().start;
        let mut present = false;
        self.mmu.present(run.pages(), &mut |_| present = true);
        if !present {
            return self.forget_absent(run);
        }
        if self.mmu.is_writable(page) || !self.mmu.peek(page, &mut scratch.pages[0]) {
            return false;
        }
        let Ok(at) = self.store(page, &scratch.pages[0]) else {
            return false;
        };
        self.mmu.discard(run.pages());
        run.settle(1, |_| State::Private(at));
        self.pool.uncharge(1, self.stats());
        true
    }
}
