//! Chunks: a device's memory comes and goes in pieces.

use super::Make;
use super::calls::Calls;
use crate::content::PageKind;

pub(super) fn check(make: Make<'_>) {
    let calls = Calls::new(make);
    calls.a_chunk_that_comes_again_is_as_good_as_new();
    calls.end();
}

impl Calls {
    fn a_chunk_that_comes_again_is_as_good_as_new(&self) {
        let rule = "a chunk that comes again is as good as new";
        let copies = !self.device.info().memory.is_mapped();
        for round in 0..3 {
            for &(first, pages) in &self.chunks {
                let ends = [first.0, first.0 + pages - 1];
                let ends = &ends[..pages.min(2) as usize];
                if copies {
                    let seed = |page: u32| u64::from(page) + round;
                    let kind = PageKind::Text;
                    ends.iter()
                        .for_each(|&page| self.store(page, kind, seed(page)));
                    for &page in ends {
                        self.check(page, kind, seed(page), rule);
                        self.free(page);
                    }
                }
                self.device.remove_chunk(first, pages);
                self.assert_empty();
                assert!(
                    self.device.add_chunk(first, pages),
                    "{rule}: the device has no memory for pages {ends:?}, which it has just given back"
                );
            }
        }
    }
}
