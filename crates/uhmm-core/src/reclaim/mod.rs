//! Reclaim: keeps some RAM free, so that a fault normally finds it so.
//!
//! It starts when less than the low watermark is available and stops at the high one. Two halves,
//! each done in bounded pieces:
//!
//! - *unmap*: a clock hand goes over the mapped pages in address order. A referenced page is spared
//!   once. Runs of others are moved out, into a block of the frame pool, until the block is full;
//!   the pages are in limbo.
//! - *clean*: the block that has been in limbo longest is copied to a device, in batches of what the
//!   device copies at once, and its frames are given back with one call. What was touched meanwhile has gone back, referenced:
//!   limbo is the second chance, and the only thing here that learns what is hot.
//!
//! Who does which matters for speed. Every move interrupts each other CPU that runs the program, to
//! flush its TLB (docs/faults.md). So fault handlers unmap, a few pages before they serve a fault:
//! their own CPU's thread is asleep then. Cleaning, which is the work of a compressor, is done by the
//! one reclaimer thread, on whatever CPU is free. It unmaps only when no fault does.
//!
//! # Protocol
//!
//! The `Hand` is taken by `try_lock` only: who does not get it leaves the unmapping to who has it.
//! The `Queue` is locked for a push or a pop. A block belongs to the hand, then to the queue, then
//! to the reclaimer that popped it (or to one migration from beginning to end), and is marked busy all that time: its slots may empty meanwhile,
//! but it is not used again before its pages have been looked at.
//!
//! A fault that finds no RAM waits for the reclaimer (outside the gate, nothing claimed). When that
//! has come to nothing for [`PATIENCE`], because no device has room or nothing can be unmapped,
//! [`Mmu::out_of_memory`] ends it (R19). What is counted is the reclaimer's own tries, not the time
//! on the clock: a process that was stopped meanwhile has not been starving.

mod clean;
mod range;
mod unmap;

use crate::addr::PageRange;
use crate::events::ReclaimNews;
use crate::fault::Scratch;
use crate::frames::{BLOCK, block_slots_for};
use crate::lock::Lock;
use crate::mmu::Mmu;
use crate::space::Space;
use clean::{Cleaned, Queue};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::time::Duration;
use unmap::{Hand, SPARED};

/// How long faults wait without any progress before the process is told that it is out of memory:
/// in tries, each followed by a `PAUSE`.
pub const PATIENCE: Duration = Duration::from_millis(500);

/// The reclaimer's rest after a step that came to nothing.
const PAUSE: Duration = Duration::from_millis(1);

/// Watermarks, and the words that threads sleep on.
pub(crate) struct Pressure {
    /// Below this many available pages the reclaimer starts.
    pub(crate) low: usize,
    /// At so many it stops.
    pub(crate) high: usize,
    /// Pages that are kept in limbo while there is pressure.
    limbo: usize,
    /// 1 while the reclaimer is wanted or at work.
    wanted: AtomicU64,
    /// Moves whenever RAM may have become available.
    freed: AtomicU64,
    waiters: AtomicU64,
}

impl Pressure {
    fn new(budget: usize) -> Self {
        let low = (budget / 32).clamp(64, 4096);
        Self {
            low,
            high: low * 2,
            limbo: (budget / 16).clamp(2 * BLOCK, 16384),
            wanted: AtomicU64::new(0),
            freed: AtomicU64::new(0),
            waiters: AtomicU64::new(0),
        }
    }
}

/// What reclaim remembers from step to step.
pub(crate) struct Reclaim {
    pub(crate) pressure: Pressure,
    hand: Lock<Hand>,
    queue: Lock<Queue>,
    /// Slots of the blocks that are busy and have been filled.
    limbo_slots: AtomicUsize,
    /// Where the next search for duplicates to give up begins.
    shed_at: AtomicU64,
}

impl Reclaim {
    pub(crate) fn new(range: PageRange, budget: usize) -> Self {
        let blocks = block_slots_for(budget) / BLOCK;
        Self {
            pressure: Pressure::new(budget),
            hand: Lock::new(Hand::new(range)),
            queue: Lock::new(Queue::new(blocks)),
            limbo_slots: AtomicUsize::new(0),
            shed_at: AtomicU64::new(0),
        }
    }

    /// Whether there should be more pages in limbo.
    fn wants_limbo(&self) -> bool {
        self.limbo_slots.load(Relaxed) < self.pressure.limbo
    }
}

/// What one step of reclaim came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is enough RAM, or a fork is going on.
    Idle,
    /// Pages were stored on a device.
    Cleaned,
    /// Nothing was in limbo; now there is something, or the search for it goes on.
    Unmapped,
    /// RAM is wanted, and somebody else is at it.
    Waiting,
    /// RAM is wanted, and none was won: no device has room, or nothing can be unmapped.
    Stuck,
}

impl<M: Mmu> Space<M> {
    /// Starts the reclaimer if RAM is short. Cheap when it is not.
    pub(crate) fn relieve(&self) {
        if self.pool.available() < self.reclaim.pressure.low {
            self.wake_reclaimer();
        }
    }

    /// Wakes the reclaimer, which frees what is buried even where RAM is not short, and looks whether it
    /// is to stop. On any thread.
    pub fn wake_reclaimer(&self) {
        if self.reclaim.pressure.wanted.swap(1, SeqCst) == 0 {
            self.mmu.wake_waiters(&self.reclaim.pressure.wanted);
        }
    }

    /// Waits until RAM may be available. Nothing may be claimed, and the gate not passed.
    pub(crate) fn wait_for_ram(&self) {
        let seen = self.reclaim.pressure.freed.load(SeqCst);
        self.reclaim.pressure.waiters.fetch_add(1, SeqCst);
        self.wake_reclaimer();
        if self.pool.available() == 0 {
            self.stats().reclaim_waits.add(1);
            self.mmu
                .wait(&self.reclaim.pressure.freed, seen, Duration::from_millis(5));
        }
        self.reclaim.pressure.waiters.fetch_sub(1, SeqCst);
    }

    /// Forgets, in the child of a fork that still has one thread, who waited for RAM: they are not there,
    /// and nobody starves on their behalf.
    pub(crate) fn forget_ram_waiters(&self) {
        self.reclaim.pressure.waiters.store(0, SeqCst);
    }

    /// Runs reclaim until `stop`. For one internal thread.
    pub fn run_reclaimer(&self, stop: &AtomicBool) {
        let pressure = &self.reclaim.pressure;
        let mut scratch = Scratch::default();
        let mut in_vain = Duration::ZERO;
        let mut news = ReclaimNews::default();
        while !stop.load(Acquire) {
            let step = self.reclaim(&mut scratch);
            if self.pool.available() > 0 || step == Step::Cleaned {
                in_vain = Duration::ZERO;
                self.wake_ram_waiters();
            }
            news.step(self, step, in_vain);
            match step {
                Step::Cleaned | Step::Unmapped => {}
                Step::Idle => {
                    pressure.wanted.store(0, SeqCst);
                    // Who stops us sets `stop` first and `wanted` then.
                    let rests = !stop.load(SeqCst);
                    if rests && (self.pool.available() >= pressure.low || self.gate.is_closed()) {
                        self.mmu
                            .wait(&pressure.wanted, 0, Duration::from_millis(100));
                    }
                }
                Step::Waiting => self.nap(),
                Step::Stuck => {
                    // Nothing wakes this wait: the word does not move. It only passes time.
                    self.mmu.wait(&pressure.wanted, 1, PAUSE);
                    if pressure.waiters.load(SeqCst) > 0 {
                        in_vain += PAUSE;
                    }
                    if in_vain > PATIENCE {
                        self.mmu.out_of_memory();
                        in_vain = Duration::ZERO;
                    }
                }
            }
        }
    }

    /// Lets a little time pass, for who waits for others to let go.
    pub(crate) fn nap(&self) {
        self.mmu.wait(&AtomicU64::new(0), 0, PAUSE);
    }

    fn wake_ram_waiters(&self) {
        if self.reclaim.pressure.waiters.load(SeqCst) > 0 && self.pool.available() > 0 {
            self.reclaim.pressure.freed.fetch_add(1, SeqCst);
            self.mmu.wake_waiters(&self.reclaim.pressure.freed);
        }
    }

    /// One step of reclaim. For internal threads.
    pub fn reclaim(&self, scratch: &mut Scratch) -> Step {
        let Some(_pass) = self.gate.enter(&self.mmu) else {
            return Step::Idle;
        };
        self.free_buried();
        if self.pool.available() >= self.reclaim.pressure.high {
            return Step::Idle;
        }
        let limbo = self.reclaim.limbo_slots.load(Relaxed);
        let cleaned = self.clean_block();
        if cleaned == Cleaned::Some {
            // Handlers unmap ahead of their faults; where none does, this keeps limbo from drying up.
            if limbo < 2 * BLOCK {
                self.unmap_block(SPARED, scratch);
            }
            return Step::Cleaned;
        }
        let wants_limbo = self.reclaim.wants_limbo();
        let unmapped = wants_limbo.then(|| self.unmap_block(SPARED, scratch));
        let unmapped = unmapped.flatten();
        let no_room = cleaned == Cleaned::NoRoom || unmapped == Some(false);
        if unmapped == Some(true) && limbo == 0 || no_room && self.shed_duplicates() {
            Step::Unmapped
        } else if wants_limbo && unmapped.is_none() {
            // Whoever has the hand may wait for a device that is at work on a page (a notifier).
            Step::Waiting
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
        // Twice: the first round of the hand takes the second chances away.
        for _ in 0..2 {
            loop {
                while self.clean_block() == Cleaned::Some {}
                if self.unmap_block(0, scratch) != Some(true) {
                    break;
                }
            }
        }
        self.pool.charged()
    }

    pub(crate) fn free_buried(&self) {
        for (i, device) in self.devices() {
            device.free_buried(self.device_stats(i));
        }
    }
}
