//! Waiting on one half of a 64-bit word.

use rustix::thread::futex::{Flags, Timespec, wait as futex_wait, wake as futex_wake};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

/// The half of `word` that holds its low 32 bits.
fn low_half(word: &AtomicU64) -> &AtomicU32 {
    let half = std::ptr::from_ref(word).cast::<AtomicU32>();
    let offset = if cfg!(target_endian = "big") { 1 } else { 0 };
    // SAFETY: both halves of a live AtomicU64 are aligned, live u32s, and only the kernel reads
    // through this reference.
    unsafe { &*half.add(offset) }
}

/// Sleeps while the low 32 bits of `word` are those of `seen`, at most for `at_most`. May return
/// early, without reason.
pub fn wait(word: &AtomicU64, seen: u64, at_most: Duration) {
    let timeout = Timespec {
        tv_sec: at_most.as_secs() as i64,
        tv_nsec: i64::from(at_most.subsec_nanos()) as _,
    };
    // Every way for this to end (woken, changed, interrupted, timed out) means: look again.
    let _ = futex_wait(low_half(word), Flags::PRIVATE, seen as u32, Some(&timeout));
}

/// Wakes every thread in [`wait`] on `word`.
pub fn wake(word: &AtomicU64) {
    let _ = futex_wake(low_half(word), Flags::PRIVATE, i32::MAX as u32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::*;
    use std::time::Instant;

    #[test]
    fn a_changed_word_does_not_wait_and_a_wake_ends_the_wait() {
        let word = AtomicU64::new(7);
        let start = Instant::now();
        wait(&word, 8, Duration::from_secs(20));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while word.load(SeqCst) == 7 {
                    wait(&word, 7, Duration::from_secs(20));
                }
            });
            std::thread::sleep(Duration::from_millis(20));
            word.store(9, SeqCst);
            wake(&word);
        });
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_wait_is_bounded() {
        wait(&AtomicU64::new(1), 1, Duration::from_millis(5));
    }
}
