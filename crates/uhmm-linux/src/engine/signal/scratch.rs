//! Memory for the copies of faults in flight: a fixed pool, since a signal handler has no heap, and the
//! stacks of programs are small.
//!
//! # Protocol
//!
//! A bit of `taken` is one scratch. Who sets a clear bit has it, until the bit is cleared again. Who finds
//! all of them set notes `given`, looks once more, and sleeps while `given` does not move; who clears a
//! bit of a full word moves it and wakes all sleepers. Between the look and the sleep a bit may be cleared:
//! then `given` has moved, and there is no sleep. The sleep is bounded besides.
//!
//! Who has a scratch may wait for RAM, for the end of a fork, or for whoever has the page in flight. None
//! of those waits for a scratch: the reclaimer and driver threads have their own, and application threads
//! touch no managed memory while they have claims.

use crate::abi::futex;
use crate::mapping::Mapping;
use rustix::io;
use std::sync::atomic::{AtomicU64, Ordering::*};
use std::time::Duration;
use uhmm_core::addr::PageData;
use uhmm_core::fault::{SCRATCH_PAGES, Scratch};

/// Faults that are served at the same time: a bit each of a word.
const SCRATCHES: usize = 64;

type Pages = [PageData; SCRATCH_PAGES];

/// See the module's head.
pub(super) struct ScratchPool {
    memory: Mapping,
    taken: AtomicU64,
    given: AtomicU64,
}

impl ScratchPool {
    pub(super) fn new() -> io::Result<Self> {
        let memory = Mapping::anonymous(SCRATCHES * size_of::<Pages>(), c"uhmm-scratch")?;
        memory.allow_all()?;
        memory.leave_out_of_dumps();
        Ok(Self {
            memory,
            taken: AtomicU64::new(0),
            given: AtomicU64::new(0),
        })
    }

    /// Gives `work` a scratch that nobody else has meanwhile.
    pub(super) fn with<R>(&self, work: impl FnOnce(&mut Scratch<'_>) -> R) -> R {
        let taken = Taken {
            pool: self,
            number: self.take(),
        };
        let pages = self.memory.at(taken.number * size_of::<Pages>());
        // SAFETY: within the mapping, which is readable and writable and aligned to pages; any bytes are
        // pages. The bit, which is ours until `taken` is dropped, makes the reference the only one.
        let pages = unsafe { &mut *pages.cast::<Pages>() };
        work(&mut Scratch::lent(pages))
    }

    fn take(&self) -> usize {
        loop {
            let given = self.given.load(SeqCst);
            let taken = self.taken.load(SeqCst);
            // The lowest: its memory was used last.
            let number = taken.trailing_ones() as usize;
            if number == SCRATCHES {
                futex::wait(&self.given, given, Duration::from_millis(10));
                continue;
            }
            let with_it = taken | 1 << number;
            if self
                .taken
                .compare_exchange_weak(taken, with_it, SeqCst, Relaxed)
                .is_ok()
            {
                return number;
            }
        }
    }

    /// Takes back, in the child of a fork that still has one thread, what other threads had.
    pub(super) fn forget_threads(&self) {
        self.taken.store(0, SeqCst);
    }
}

struct Taken<'a> {
    pool: &'a ScratchPool,
    number: usize,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let before = self.pool.taken.fetch_and(!(1 << self.number), SeqCst);
        if before == u64::MAX {
            self.pool.given.fetch_add(1, SeqCst);
            futex::wake(&self.pool.given);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn no_scratch_is_given_twice_and_who_finds_none_waits() {
        let pool = ScratchPool::new().unwrap();
        let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..SCRATCHES + 16 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        pool.with(|_| {
                            let now = inside.fetch_add(1, SeqCst) + 1;
                            most.fetch_max(now, SeqCst);
                            std::thread::sleep(Duration::from_millis(1));
                            inside.fetch_sub(1, SeqCst);
                        });
                    }
                });
            }
        });
        assert!(most.load(SeqCst) <= SCRATCHES);
        assert_eq!(pool.taken.load(SeqCst), 0, "all have come back");
    }
}
