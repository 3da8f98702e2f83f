//! What programs want of ranges, where the fault path can see it: a bit a page and hint, in tables
//! that cost memory only where a hint was given.

use crate::addr::{PageNo, PageRange};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// See the module's head.
pub(crate) struct Hints<T> {
    range: PageRange,
    read_mostly: T,
    /// Whether any hint was ever given: most spaces need not look.
    given: AtomicBool,
}

impl<T: Deref<Target = [AtomicU64]>> Hints<T> {
    pub(crate) fn new(range: PageRange, table: impl Fn(usize) -> Option<T>) -> Option<Self> {
        Some(Self {
            range,
            read_mostly: table(range.len.div_ceil(64))?,
            given: AtomicBool::new(false),
        })
    }

    /// Whether `page` is mostly read: then its device copy is kept when it is read.
    pub(crate) fn read_mostly(&self, page: PageNo) -> bool {
        let index = (page.0 - self.range.start.0) as usize;
        self.given.load(Relaxed)
            && self.read_mostly[index / 64].load(Relaxed) >> (index % 64) & 1 != 0
    }

    /// Sets or takes back the hint for `pages`.
    pub(crate) fn set_read_mostly(&self, pages: PageRange, on: bool) {
        if !on && !self.given.load(Relaxed) {
            return;
        }
        self.given.fetch_or(on, Relaxed);
        let first = (pages.start.0 - self.range.start.0) as usize;
        let end = first + pages.len;
        let mut at = first;
        while at < end {
            let word = &self.read_mostly[at / 64];
            let len = (64 - at % 64).min(end - at);
            let bits = (u64::MAX >> (64 - len)) << (at % 64);
            if on {
                word.fetch_or(bits, Relaxed);
            } else if word.load(Relaxed) & bits != 0 {
                // Only where a hint was given, so that freeing a range does not fill the table.
                word.fetch_and(!bits, Relaxed);
            }
            at += len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_covers_its_range_and_no_more() {
        let all = PageRange::new(PageNo(1000), 300);
        let table = |n: usize| Some((0..n).map(|_| AtomicU64::new(0)).collect::<Vec<_>>());
        let hints = Hints::new(all, table).unwrap();
        for (start, len) in [(1000, 300), (1000, 1), (1063, 2), (1064, 64), (1010, 200)] {
            let pages = PageRange::new(PageNo(start), len);
            hints.set_read_mostly(pages, true);
            for page in all.iter() {
                assert_eq!(hints.read_mostly(page), pages.contains(page), "{page:?}");
            }
            hints.set_read_mostly(pages, false);
            assert!(!all.iter().any(|page| hints.read_mostly(page)));
        }
    }
}
