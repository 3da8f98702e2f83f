//! Reclaim: keeps some RAM free, so that a fault normally finds it so.
//!
//! One internal thread runs [`Space::reclaim`]. It starts when less than the low watermark is
//! available and stops at the high one. Two steps, each a bounded piece of work:
//!
//! - *unmap*: a clock hand goes over the mapped pages in address order. A referenced page is spared
//!   once. A run of others, up to a block, is taken out by one move (one TLB flush; facts about
//!   trap 13 in docs/faults.md) and is in limbo.
//! - *clean*: the batch that has been in limbo longest is copied to a device, page by page, and its
//!   frames are free. What was touched meanwhile has gone back, referenced: limbo is the second
//!   chance, and the only thing here that learns what is hot.
//!
//! Limbo is kept at a share of the budget while there is pressure, so that pages get their second
//! chance before they are copied.
//!
//! A fault that finds no RAM waits for this thread (outside the gate, nothing claimed). When a wait
//! has seen no progress for [`PATIENCE`], because no device has room and nothing can be unmapped,
//! [`Mmu::out_of_memory`] ends it (R19).

use crate::addr::{PageData, PageNo};
use crate::device::CopyInError;
use crate::entry::{DeviceAddr, State};
use crate::fault::Scratch;
use crate::frames::{BLOCK, first_slot, slots_for};
use crate::migrate::Run;
use crate::mmu::{Mmu, Stop};
use crate::space::Space;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::time::{Duration, Instant};

/// How long faults wait without any progress before the process is told that it is out of memory.
pub const PATIENCE: Duration = Duration::from_millis(500);

/// Entries that one step of the hand looks at before it lets others have the gate.
const LOOK: usize = 1 << 15;

/// Watermarks, and the two words that threads sleep on.
pub(crate) struct Pressure {
    /// Below this many available pages the reclaimer starts.
    pub(crate) low: usize,
    high: usize,
    /// Pages that are kept in limbo while there is pressure.
    limbo: usize,
    /// 1 while the reclaimer is wanted or at work.
    wanted: AtomicU64,
    /// Moves whenever RAM may have become available.
    freed: AtomicU64,
    waiters: AtomicU64,
}

impl Pressure {
    pub(crate) fn new(budget: usize) -> Self {
        let low = (budget / 32).clamp(64, 4096);
        Self {
            low,
            high: low * 2,
            limbo: (budget / 16).clamp(BLOCK, 16384),
            wanted: AtomicU64::new(0),
            freed: AtomicU64::new(0),
            waiters: AtomicU64::new(0),
        }
    }
}

/// A block of pages in limbo: slot `i` of `block` holds page `start + i`, unless it has gone back.
/// The block is not used for anything else until its batch has left the queue.
struct Batch {
    block: u32,
    start: PageNo,
    len: usize,
}

/// What the reclaimer remembers from step to step.
pub(crate) struct Reclaim {
    hand: PageNo,
    limbo: VecDeque<Batch>,
    limbo_pages: usize,
    /// For each block of the pool: whether a batch in the queue has it.
    queued: Box<[bool]>,
}

impl Reclaim {
    pub(crate) fn new(start: PageNo, budget: usize) -> Self {
        // Room for every block, so that the queue never allocates.
        let blocks = slots_for(budget) / BLOCK;
        Self {
            hand: start,
            limbo: VecDeque::with_capacity(blocks),
            limbo_pages: 0,
            queued: vec![false; blocks].into(),
        }
    }
}

/// What one step of reclaim came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is enough RAM, or a fork is going on.
    Idle,
    /// Something was done.
    Worked,
    /// RAM is wanted, and nothing could be done: no device has room, or nothing can be unmapped.
    Stuck,
}

impl<M: Mmu> Space<M> {
    /// Starts the reclaimer if RAM is short. Cheap when it is not.
    pub(crate) fn relieve(&self) {
        if self.pool.available() < self.pressure.low {
            self.want_reclaim();
        }
    }

    fn want_reclaim(&self) {
        if self.pressure.wanted.swap(1, SeqCst) == 0 {
            self.mmu.wake_waiters(&self.pressure.wanted);
        }
    }

    /// Waits until RAM may be available. Nothing may be claimed, and the gate not passed.
    pub(crate) fn wait_for_ram(&self) {
        let seen = self.pressure.freed.load(SeqCst);
        self.pressure.waiters.fetch_add(1, SeqCst);
        self.want_reclaim();
        if self.pool.available() == 0 {
            self.stats().reclaim_waits.add(1);
            self.mmu
                .wait(&self.pressure.freed, seen, Duration::from_millis(5));
        }
        self.pressure.waiters.fetch_sub(1, SeqCst);
    }

    /// Runs reclaim until `stop`. For one internal thread.
    pub fn run_reclaimer(&self, stop: &AtomicBool) {
        let mut scratch = Scratch::default();
        let mut stuck_since = None;
        while !stop.load(Acquire) {
            match self.reclaim(&mut scratch) {
                Step::Worked => {
                    stuck_since = None;
                    self.wake_ram_waiters();
                }
                Step::Idle => {
                    stuck_since = None;
                    self.wake_ram_waiters();
                    self.pressure.wanted.store(0, SeqCst);
                    if self.pool.available() >= self.pressure.low || self.gate.is_closed() {
                        self.mmu
                            .wait(&self.pressure.wanted, 0, Duration::from_millis(100));
                    }
                }
                Step::Stuck => {
                    let since = *stuck_since.get_or_insert_with(Instant::now);
                    let starving = self.pressure.waiters.load(SeqCst) > 0;
                    if starving && self.pool.available() == 0 && since.elapsed() > PATIENCE {
                        self.mmu.out_of_memory();
                        stuck_since = None;
                    }
                    // Nothing wakes this wait: the word does not move. It only passes time.
                    self.mmu
                        .wait(&self.pressure.wanted, 1, Duration::from_millis(5));
                }
            }
        }
    }

    fn wake_ram_waiters(&self) {
        if self.pressure.waiters.load(SeqCst) > 0 && self.pool.available() > 0 {
            self.pressure.freed.fetch_add(1, SeqCst);
            self.mmu.wake_waiters(&self.pressure.freed);
        }
    }

    /// One step of reclaim. For internal threads.
    pub fn reclaim(&self, scratch: &mut Scratch) -> Step {
        let Some(_pass) = self.gate.enter(&self.mmu) else {
            return Step::Idle;
        };
        self.free_buried();
        if self.pool.available() >= self.pressure.high {
            return Step::Idle;
        }
        self.reclaim_now(scratch)
    }

    /// One step of reclaim, wanted or not. For internal threads, inside the gate.
    fn reclaim_now(&self, scratch: &mut Scratch) -> Step {
        let mut state = self.reclaim.lock();
        if state.limbo_pages < self.pressure.limbo && self.unmap_batch(&mut state, scratch) {
            return Step::Worked;
        }
        if self.clean_batch(&mut state) {
            Step::Worked
        } else {
            Step::Stuck
        }
    }

    /// Pushes everything that is mapped or in limbo out to the devices, as far as they have room;
    /// returns the pages left in RAM. For tests and measurements, on an internal thread.
    pub fn push_out(&self, scratch: &mut Scratch) -> usize {
        let Some(_pass) = self.gate.enter(&self.mmu) else {
            return self.pool.charged();
        };
        let mut state = self.reclaim.lock();
        // Twice: the first round of the hand takes the second chances away.
        for _ in 0..2 {
            while self.unmap_batch(&mut state, scratch) {
                if state.limbo_pages >= self.pressure.limbo {
                    self.clean_batch(&mut state);
                }
            }
        }
        while self.clean_batch(&mut state) {}
        self.pool.charged()
    }

    fn free_buried(&self) {
        for (i, device) in self.devices.iter().enumerate() {
            device.free_buried(self.device_stats(i as u8));
        }
    }

    /// Finds a run of cold pages and takes it out. `false`: there was none to be found.
    fn unmap_batch(&self, state: &mut Reclaim, scratch: &mut Scratch) -> bool {
        let range = self.range();
        let mut wraps = 0;
        let mut looked = 0;
        while wraps < 2 && looked < LOOK {
            let Some(page) = self.entries.next_mapped(state.hand, range.end()) else {
                state.hand = range.start;
                wraps += 1;
                continue;
            };
            state.hand = page.plus(1);
            looked += 1;
            let seen = self.entries.load(page);
            match seen.state() {
                State::System { referenced: true } => self.entries.clear_referenced(page, seen),
                State::System { referenced: false } => {
                    let cold = |_, state| state == State::System { referenced: false };
                    let run = Run::collect(self, page, BLOCK, cold);
                    if run.pages().len > 0 && self.unmap(state, run, scratch) {
                        return true;
                    }
                }
                _ => {}
            }
        }
        looked >= LOOK
    }

    /// Takes the pages of `run` out of the space, into limbo. Returns whether any left.
    fn unmap(&self, state: &mut Reclaim, mut run: Run<'_, M>, scratch: &mut Scratch) -> bool {
        let Some(block) = self.empty_block(state) else {
            return false;
        };
        let (start, first) = (run.pages().start, first_slot(block));
        state.hand = run.pages().end();
        let mut moved = 0;
        let mut unshared = false;
        let stop = loop {
            let progress = self.mmu.take(run.pages(), first.plus(moved));
            // The slots are marked before an entry names them.
            self.pool.moved_in(block, moved + progress.pages);
            run.settle(progress.pages, |i| State::Limbo(first.plus(moved + i)));
            moved += progress.pages;
            match progress.stop {
                // Shared after a fork, most likely: with copies of its own, the run can go on.
                Some(Stop::Busy) if !unshared => {
                    self.mmu.unshare(run.pages());
                    unshared = true;
                }
                stop => break stop,
            }
        };
        if moved > 0 {
            state.limbo.push_back(Batch {
                block,
                start,
                len: moved,
            });
            state.limbo_pages += moved;
            state.queued[block as usize] = true;
        }
        if let Some(stop) = stop {
            state.hand = run.pages().start.plus(1);
            run.truncate(1);
            return self.unmap_odd(run, stop, scratch) || moved > 0;
        }
        moved > 0
    }

    /// The one page of `run` cannot be moved, because of `stop`. Returns whether it left RAM.
    fn unmap_odd(&self, mut run: Run<'_, M>, stop: Stop, scratch: &mut Scratch) -> bool {
        match stop {
            // Dropped behind our back: it reads as zero from now on.
            Stop::Absent => {
                run.settle(1, |_| State::None);
                self.pool.uncharge(1, self.stats());
                true
            }
            Stop::Protected => self.evict_protected(run, scratch),
            Stop::Busy => {
                self.stats().busy_pages.add(1);
                false
            }
            _ => false,
        }
    }

    /// A page of a range that is not writable cannot be moved, but nobody can change it either: it
    /// is read, stored and dropped. The protection must not change meanwhile.
    fn evict_protected(&self, mut run: Run<'_, M>, scratch: &mut Scratch) -> bool {
        let Some(_fixed) = self.protection.hold() else {
            return false;
        };
        let page = run.pages().start;
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

    /// An empty block of the pool; where free frames are in the way of one, they are given up.
    fn empty_block(&self, state: &Reclaim) -> Option<u32> {
        let usable = |block: u32| !state.queued[block as usize];
        self.pool.empty_block(usable).or_else(|| {
            for block in self.pool.blocks() {
                self.shed(block);
            }
            self.pool.empty_block(usable)
        })
    }

    fn shed(&self, block: u32) {
        self.pool.shed(block, self.stats(), |slot, len| {
            self.mmu.drop_frames(slot, len)
        });
    }

    /// Stores the oldest batch in limbo on a device. `false`: there is none, or no device has room.
    fn clean_batch(&self, state: &mut Reclaim) -> bool {
        let Some(batch) = state.limbo.pop_front() else {
            return false;
        };
        let mut full = false;
        let mut done = 0;
        let mut bits = self.pool.in_limbo(batch.block);
        while bits != 0 && !full {
            let i = bits.trailing_zeros() as usize;
            bits &= bits - 1;
            match self.clean(
                batch.start.plus(i),
                State::Limbo(first_slot(batch.block).plus(i)),
            ) {
                Cleaned::Stored => done += 1,
                Cleaned::Full => full = true,
                Cleaned::Gone => {}
            }
        }
        self.shed(batch.block);
        if self.pool.in_limbo(batch.block) == 0 {
            state.limbo_pages -= batch.len;
            state.queued[batch.block as usize] = false;
            self.pool.reconsider(batch.block);
            return true;
        }
        // Pages that found no room, or that are in a fault's hands just now.
        if full {
            state.limbo.push_front(batch);
        } else {
            state.limbo.push_back(batch);
        }
        done > 0 || !full
    }

    /// Copy, install, finalize: one page from limbo to a device.
    fn clean(&self, page: PageNo, expected: State) -> Cleaned {
        let mut run = Run::collect(self, page, 1, |_, state| state == expected);
        let Some(State::Limbo(slot)) = run.first() else {
            return Cleaned::Gone;
        };
        let frame = self.pool.claim_limbo(slot);
        let mut stored = Err(CopyInError::Full);
        self.mmu
            .with_frame(&frame, &mut |data| stored = self.store(page, data));
        match stored {
            Ok(at) => {
                run.settle(1, |_| State::Private(at));
                self.pool.put_free(frame);
                Cleaned::Stored
            }
            // Dropping the run leaves the page in limbo, with the frame.
            Err(_) => Cleaned::Full,
        }
    }

    /// Stores a page on the first device that takes it.
    fn store(&self, page: PageNo, data: &PageData) -> Result<DeviceAddr, CopyInError> {
        for (i, device) in self.devices.iter().enumerate() {
            if device.is_full() {
                continue;
            }
            let device_index = i as u8;
            if let Ok(at) = device.store(page, data, self.device_stats(device_index)) {
                self.stats().pages_to_device.add(1);
                return Ok(DeviceAddr {
                    device: device_index,
                    page: at,
                });
            }
        }
        Err(CopyInError::Full)
    }
}

/// What became of a page in limbo.
enum Cleaned {
    Stored,
    /// No device has room.
    Full,
    /// It was touched, or is in somebody's hands.
    Gone,
}
