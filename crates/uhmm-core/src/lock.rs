//! The one lock that the fault path may take, and the one module of this crate with `unsafe`.
//!
//! A lock of the fault path must survive `fork`. While a program forks, faults are still served
//! (see [`crate::fork`]), so a lock may be held by a handler thread at the moment when the kernel
//! copies the process; in the child nobody is left to release it. Whoever serves a fault during a
//! fork only reads what the lock guards, so the child may simply take such a lock over.
//!
//! # Protocol
//!
//! The word is 0 when the lock is free, else the [generation] of the process that holds it.
//!
//! - take: 0 to the current generation, or from an *older* generation to the current one.
//! - release: the current generation to 0, by the holder only.
//!
//! [`new_generation`] is called in the child, before it has a second thread. Waiting is spinning
//! with a yield: sections that anybody waits for are short. (The hand of reclaim is held across moves,
//! and nobody waits for it.)
//!
//! [generation]: new_generation

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, Ordering::*};

static GENERATION: AtomicU32 = AtomicU32::new(1);

/// Makes every lock that is held now free to take. For the child of a fork, while it has but one
/// thread and no guard of its own.
pub fn new_generation() {
    GENERATION.fetch_add(1, AcqRel);
}

/// Which process of a line of forks this is: another one in a child than in its parent.
pub(crate) fn generation() -> u32 {
    GENERATION.load(Acquire)
}

/// A mutual exclusion lock for short sections in the fault path. See the module's head.
#[derive(Default)]
pub struct Lock<T> {
    holder: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the protocol lets one thread at a time reach the value, so sharing the lock only moves
// the value between threads.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    /// A free lock around `value`.
    pub const fn new(value: T) -> Self {
        Self {
            holder: AtomicU32::new(0),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes the lock, waiting for as long as another thread holds it.
    pub fn lock(&self) -> Guard<'_, T> {
        let mut spins = 0u32;
        loop {
            if let Some(guard) = self.try_lock() {
                return guard;
            }
            spins += 1;
            if spins < 100 {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }

    /// Takes the lock if nobody holds it.
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        let mine = GENERATION.load(Relaxed);
        let held = self.holder.load(Relaxed);
        if held == mine {
            return None;
        }
        self.holder
            .compare_exchange(held, mine, Acquire, Relaxed)
            .ok()?;
        Some(Guard { lock: self })
    }
}

/// Holds a [`Lock`]; dropping it releases.
pub struct Guard<'a, T> {
    lock: &'a Lock<T>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard exists only while its thread holds the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard exists only while its thread holds the lock, and is borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.lock.holder.store(0, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excludes_and_counts() {
        let lock = Lock::new(0u64);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| *lock.lock() += 1));
            }
        });
        assert_eq!(*lock.lock(), 40_000);
    }

    #[test]
    fn a_held_lock_is_not_given_twice() {
        let lock = Lock::new(());
        let held = lock.lock();
        assert!(lock.try_lock().is_none());
        drop(held);
        assert!(lock.try_lock().is_some());
    }
}
