//! How much of a space and its frame pool the kernel has in RAM.

use std::fs;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;
use uhmm::Space;
use uhmm_linux::abi::pagemap;

/// Samples in a row that must be above the limit: a page that moves between the two ranges while
/// they are scanned may be counted twice.
const SURE: usize = 4;

pub struct Resident {
    /// Every range that is registered with a userfaultfd: the space and the pool.
    ranges: Vec<Range<usize>>,
    limit: usize,
}

impl Resident {
    /// For the one space of this process, with a budget of so many bytes.
    pub fn new(space: &Space, budget: usize) -> Self {
        let all = space.internals().reserved();
        let all = all.start.address()..all.end().address();
        // The space counts as a whole. The kernel splits its mappings, and may have merged the
        // first of them with the pool, which lies beside it.
        let outside = registered().into_iter().flat_map(|range| {
            let below = range.start..range.end.min(all.start);
            let above = range.start.max(all.end)..range.end;
            [below, above]
        });
        let pool: Vec<_> = outside.filter(|range| !range.is_empty()).collect();
        assert!(!pool.is_empty(), "the frame pool is registered");
        Self {
            ranges: pool.into_iter().chain([all]).collect(),
            limit: budget + budget / 50 + (4 << 20),
        }
    }

    fn bytes(&self) -> usize {
        let mut bytes = 0;
        for range in &self.ranges {
            let any = pagemap::PRESENT | pagemap::SWAPPED;
            pagemap::scan(range.clone(), any, |found, _| bytes += found.len()).unwrap();
        }
        bytes
    }

    /// Samples until `done`, and counts the samples.
    ///
    /// # Panics
    /// The limit is exceeded.
    pub fn watch(&self, done: &AtomicBool, samples: &AtomicU64) {
        let mut above = Vec::new();
        while !done.load(SeqCst) {
            let bytes = self.bytes();
            samples.fetch_add(1, SeqCst);
            if bytes > self.limit {
                above.push(bytes);
                assert!(
                    above.len() < SURE,
                    "{above:?} bytes in RAM of {}",
                    self.limit
                );
            } else {
                above.clear();
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// The mappings of this process that are registered for missing pages.
fn registered() -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut last = 0..0;
    for line in fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if flags.split_whitespace().any(|flag| flag == "um") {
                ranges.push(last.clone());
            }
        } else if let Some((start, end)) = line.split(' ').next().unwrap().split_once('-') {
            let hex = |text| usize::from_str_radix(text, 16);
            if let (Ok(start), Ok(end)) = (hex(start), hex(end)) {
                last = start..end;
            }
        }
    }
    ranges
}
