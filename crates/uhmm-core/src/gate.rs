//! The gate: who changes pages passes it, and a fork closes it.
//!
//! Around a `fork` nothing may be half done, since the child gets a copy of the core's own memory
//! but none of the threads that work on it. So every operation that changes entries, frames or
//! device pages runs between [`Gate::enter`] and the drop of its [`Pass`], and [`Gate::close`] waits
//! until nobody is inside.
//!
//! # Protocol
//!
//! `closed` and the counts are a store-then-load pair on both sides (sequentially consistent):
//! who enters counts itself in and then looks at `closed`; who closes sets `closed` and then looks
//! at the counts. So one of the two sees the other. Counts are spread over cache lines, so that
//! threads on different CPUs do not share one.
//!
//! Nobody waits for memory, for a fault, or for another page while inside, except for the end of
//! a migration, whose owner is inside too and needs nothing from the waiter.

use crate::mmu::Mmu;
use std::sync::atomic::{AtomicU64, Ordering::*};
use std::time::{Duration, Instant};

const SHARDS: usize = 16;

#[derive(Default)]
#[repr(align(64))]
struct Shard(AtomicU64);

/// See the module's head.
#[derive(Default)]
pub(crate) struct Gate {
    shards: [Shard; SHARDS],
    /// 1 while closed.
    closed: AtomicU64,
}

impl Gate {
    /// A shard that is likely another one for another thread: stacks lie apart.
    fn shard(&self) -> &AtomicU64 {
        let here = 0u8;
        let stack = std::ptr::from_ref(&here) as usize;
        &self.shards[(stack >> 14 ^ stack >> 21) % SHARDS].0
    }

    /// Enters, unless the gate is closed.
    pub(crate) fn enter<'a, M: Mmu>(&'a self, mmu: &'a M) -> Option<Pass<'a, M>> {
        let shard = self.shard();
        shard.fetch_add(1, SeqCst);
        let pass = Pass {
            shard,
            gate: self,
            mmu,
        };
        (self.closed.load(SeqCst) == 0).then_some(pass)
    }

    /// Enters, waiting at most `patience` for the gate to open.
    ///
    /// The wait is bounded because the forking thread takes locks of the C library after it has
    /// closed the gate: a thread that holds one of them and waits here must give up for the fork
    /// to go on.
    pub(crate) fn enter_within<'a, M: Mmu>(
        &'a self,
        mmu: &'a M,
        patience: Duration,
    ) -> Option<Pass<'a, M>> {
        let start = Instant::now();
        loop {
            if let Some(pass) = self.enter(mmu) {
                return Some(pass);
            }
            let rest = patience.checked_sub(start.elapsed())?;
            mmu.wait(&self.closed, 1, rest);
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(SeqCst) != 0
    }

    /// Closes the gate and waits until nobody is inside. One closer at a time: a second one waits
    /// for the first to open.
    pub(crate) fn close<M: Mmu>(&self, mmu: &M) {
        while self.closed.compare_exchange(0, 1, SeqCst, SeqCst).is_err() {
            mmu.wait(&self.closed, 1, Duration::from_millis(10));
        }
        for Shard(count) in &self.shards {
            loop {
                let inside = count.load(SeqCst);
                if inside == 0 {
                    break;
                }
                mmu.wait(count, inside, Duration::from_millis(1));
            }
        }
    }

    /// Opens the gate again.
    pub(crate) fn open<M: Mmu>(&self, mmu: &M) {
        self.closed.store(0, SeqCst);
        mmu.wake_waiters(&self.closed);
    }

    /// Forgets, in the child of a fork that still has one thread, who was counted while trying to
    /// enter: they are not there.
    pub(crate) fn forget_threads(&self) {
        for Shard(count) in &self.shards {
            count.store(0, SeqCst);
        }
    }
}

/// Being inside the gate.
pub(crate) struct Pass<'a, M: Mmu> {
    shard: &'a AtomicU64,
    gate: &'a Gate,
    mmu: &'a M,
}

impl<M: Mmu> Drop for Pass<'_, M> {
    fn drop(&mut self) {
        let left = self.shard.fetch_sub(1, SeqCst) - 1;
        if left == 0 && self.gate.is_closed() {
            self.mmu.wake_waiters(self.shard);
        }
    }
}
