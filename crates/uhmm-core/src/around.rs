//! How many pages to bring in around a fault.
//!
//! Advice only: the resolver takes as many pages as are in the same state, and is right with any
//! answer. A window starts at one page, doubles with each fault that lands just past the last
//! window, and falls back to one otherwise, so random use pays nothing.
//!
//! One word for each part of the address space (hashed): the page where the next sequential fault
//! would be, and the window that ended there. Races between threads cost a wrong guess.

use crate::addr::PageNo;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The most pages that one fault brings in.
pub const MAX_WINDOW: usize = 16;

/// Streams that are told apart.
const STREAMS: usize = 1024;
/// Pages in each part of the address space that is one stream: 8 MiB.
const PART_SHIFT: u32 = 11;
const WINDOW_BITS: u32 = 8;

pub(crate) struct Around {
    streams: Box<[AtomicU64]>,
}

impl Default for Around {
    fn default() -> Self {
        Self {
            streams: (0..STREAMS).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl Around {
    fn stream(&self, page: PageNo) -> &AtomicU64 {
        let part = page.0 >> PART_SHIFT;
        &self.streams[(part ^ part >> 10) as usize % STREAMS]
    }

    /// How many pages to bring in for a fault on `page`.
    pub(crate) fn window(&self, page: PageNo) -> usize {
        let word = self.stream(page).load(Relaxed);
        if word >> WINDOW_BITS == page.0 {
            ((word & ((1 << WINDOW_BITS) - 1)) as usize * 2).clamp(1, MAX_WINDOW)
        } else {
            1
        }
    }

    /// `pages` were brought in at `page`.
    pub(crate) fn brought(&self, page: PageNo, pages: usize) {
        let next = page.plus(pages);
        self.stream(next)
            .store(next.0 << WINDOW_BITS | pages as u64, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_on_sequential_use_and_shrinks_on_random() {
        let around = Around::default();
        let mut page = PageNo(5000);
        let mut windows = Vec::new();
        for _ in 0..7 {
            let window = around.window(page);
            around.brought(page, window);
            windows.push(window);
            page = page.plus(window);
        }
        assert_eq!(windows, [1, 2, 4, 8, 16, 16, 16]);
        assert_eq!(around.window(page.plus(3)), 1);
    }
}
