//! A lock-free allocator of small numbers: a bit each, set while the number is in use.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};

/// Hands out numbers below a limit; any thread may take and give back at any time.
///
/// Next fit below a high-water mark: the mark rises only when all below it is in use, so that the
/// tables indexed by these numbers stay as small as what is in use.
pub(crate) struct Bitmap<T> {
    words: T,
    limit: usize,
    /// Words below which numbers are looked for.
    mark: AtomicUsize,
    /// Where the next search begins, in words.
    cursor: AtomicUsize,
    in_use: AtomicUsize,
}

impl<T: Deref<Target = [AtomicU64]>> Bitmap<T> {
    /// Numbers below `limit`; `words` has a zero bit for each.
    pub(crate) fn new(words: T, limit: usize) -> Self {
        assert!(words.len() * 64 >= limit);
        Self {
            words,
            limit,
            mark: AtomicUsize::new(0),
            cursor: AtomicUsize::new(0),
            in_use: AtomicUsize::new(0),
        }
    }

    /// Takes a number that is not in use, or `None` when all are.
    pub(crate) fn take(&self) -> Option<usize> {
        if self.in_use.fetch_add(1, AcqRel) >= self.limit {
            self.in_use.fetch_sub(1, AcqRel);
            return None;
        }
        // The count above reserved one of the limit's numbers, so one is free or about to be.
        loop {
            let mark = self.mark.load(Acquire);
            if self.in_use.load(Acquire) <= mark * 64
                && let Some(number) = self.search(mark)
            {
                return Some(number);
            }
            let full = self.limit.div_ceil(64);
            let higher = (mark + 1).min(full);
            let _ = self.mark.compare_exchange(mark, higher, AcqRel, Acquire);
            if mark == full {
                std::thread::yield_now();
            }
        }
    }

    fn search(&self, mark: usize) -> Option<usize> {
        let start = self.cursor.load(Relaxed);
        (0..mark).find_map(|step| {
            let index = (start + step) % mark;
            let word = &self.words[index];
            let mut bits = word.load(Acquire);
            while bits != u64::MAX {
                let bit = bits.trailing_ones() as usize;
                let number = index * 64 + bit;
                if number >= self.limit {
                    return None;
                }
                match word.compare_exchange_weak(bits, bits | 1 << bit, AcqRel, Acquire) {
                    Ok(_) => {
                        self.cursor.store(index, Relaxed);
                        return Some(number);
                    }
                    Err(now) => bits = now,
                }
            }
            None
        })
    }

    /// Gives `number` back. Returns whether it was in use.
    pub(crate) fn give(&self, number: usize) -> bool {
        let bit = 1 << (number % 64);
        let was = self.words[number / 64].fetch_and(!bit, AcqRel) & bit != 0;
        if was {
            self.in_use.fetch_sub(1, AcqRel);
        }
        was
    }

    /// How many numbers are in use.
    pub(crate) fn in_use(&self) -> usize {
        self.in_use.load(Acquire)
    }

    /// Numbers at or above this have never been handed out.
    pub(crate) fn high_water(&self) -> usize {
        (self.mark.load(Acquire) * 64).min(self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bitmap(limit: usize) -> Bitmap<Vec<AtomicU64>> {
        Bitmap::new(
            (0..limit.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            limit,
        )
    }

    #[test]
    fn hands_out_each_number_once_and_then_none() {
        let bitmap = bitmap(130);
        let mut all: Vec<_> = std::iter::from_fn(|| bitmap.take()).collect();
        all.sort_unstable();
        assert_eq!(all, (0..130).collect::<Vec<_>>());
        assert!(bitmap.give(77));
        assert!(!bitmap.give(77), "a second give must be seen");
        assert_eq!(bitmap.take(), Some(77));
        assert_eq!(bitmap.take(), None);
    }

    #[test]
    fn stays_low_while_numbers_below_are_free() {
        let bitmap = bitmap(100_000);
        for _ in 0..10_000 {
            let number = bitmap.take().unwrap();
            assert!(number < 64);
            bitmap.give(number);
        }
        assert_eq!(bitmap.high_water(), 64);
    }

    #[test]
    fn threads_never_share_a_number() {
        let bitmap = bitmap(256);
        let owned: Vec<AtomicU64> = (0..256).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let Some(number) = bitmap.take() else {
                            continue;
                        };
                        assert_eq!(
                            owned[number].swap(1, SeqCst),
                            0,
                            "{number} handed out twice"
                        );
                        owned[number].store(0, SeqCst);
                        bitmap.give(number);
                    }
                });
            }
        });
        assert_eq!(bitmap.in_use(), 0);
    }
}
