//! Batches: many pages a call, which may still be on their way when the call returns.
//!
//! Of a device that leaves the capability alone these rules check the defaults, which are right.

use super::calls::{Calls, assert_is, make};
use super::direct::MANY;
use super::{Make, SLACK};
use crate::content::PageKind;
use uhmm_core::addr::{DevicePage, PageData};
use uhmm_core::device::{CopyIn, CopyInError, CopyOut, CopyOutError, Fence};

/// The most pages that the core gives one call.
const MOST: u32 = 64;

pub(super) fn check(make: Make<'_>) {
    let calls = Calls::new(make);
    let batch = u32::from(calls.device.info().batch_pages);
    for pages in [1, 2, batch.clamp(1, MOST), MOST] {
        calls.a_batch_stores_what_single_copies_read(pages.min(calls.pages));
        calls.a_batch_reads_what_single_copies_stored(pages.min(calls.pages));
    }
    calls.a_page_of_a_batch_fails_alone();
    calls.end();
}

fn kind(page: u32) -> PageKind {
    PageKind::ALL[page as usize % PageKind::ALL.len()]
}

/// Waits as the core does, before anybody looks at the memory again.
fn wait(fence: Option<Box<dyn Fence>>) {
    let ended = fence.map_or(Ok(()), |mut fence| fence.wait());
    assert_eq!(ended, Ok(()), "the fence of a batch ends without an error");
}

impl Calls {
    fn batch_in(&self, pages: &[(u32, PageKind)]) -> Vec<Result<(), CopyInError>> {
        let data: Vec<PageData> = pages
            .iter()
            .map(|&(page, kind)| make(kind, page.into()))
            .collect();
        let copies = pages.iter().zip(&data).map(|(&(page, _), from)| CopyIn {
            page: DevicePage(page),
            from,
            // A device that says nothing of a page has not stored it.
            result: Err(CopyInError::Full),
        });
        let mut copies: Vec<_> = copies.collect();
        wait(self.device.copy_in_batch(&mut copies));
        copies.iter().map(|copy| copy.result).collect()
    }

    fn a_batch_stores_what_single_copies_read(&self, pages: u32) {
        let rule = "a batch stores what single copies read";
        let batch: Vec<_> = (0..pages).map(|page| (page, kind(page))).collect();
        for ((page, kind), result) in batch.iter().zip(self.batch_in(&batch)) {
            assert_ne!(result, Err(CopyInError::Dead), "{rule}: page {page}");
            if result.is_ok() {
                self.check(*page, *kind, u64::from(*page), rule);
                self.free(*page);
            }
        }
        self.assert_empty();
    }

    /// Two times, the second in the opposite order: a batch is no run of pages.
    fn a_batch_reads_what_single_copies_stored(&self, pages: u32) {
        let rule = "a batch reads what single copies stored";
        let mut stored: Vec<u32> = (0..pages)
            .filter(|&page| self.try_store(page, kind(page), page.into()))
            .collect();
        for _ in 0..2 {
            let mut found = vec![PageData([0xa5; _]); stored.len()];
            let copies = stored.iter().zip(&mut found).map(|(&page, to)| CopyOut {
                page: DevicePage(page),
                to,
                result: Err(CopyOutError::Retry),
            });
            let mut copies: Vec<_> = copies.collect();
            wait(self.device.copy_out_batch(&mut copies));
            for copy in copies {
                let page = copy.page.0;
                assert_eq!(copy.result, Ok(()), "{rule}: page {page}");
                assert_is(copy.to, page, kind(page), page.into(), rule);
            }
            stored.reverse();
        }
        stored.iter().for_each(|&page| self.free(page));
        self.assert_empty();
    }

    /// Batches until the device is full in the middle of one.
    fn a_page_of_a_batch_fails_alone(&self) {
        let rule = "a page of a batch fails alone";
        let mut stored = Vec::new();
        let mut bytes = self.device.stored_bytes();
        for first in (0..MANY.min(self.pages)).step_by(MOST as usize) {
            let end = self.pages.min(first + MOST);
            let batch: Vec<_> = (first..end).map(|page| (page, PageKind::Random)).collect();
            let results = self.batch_in(&batch);
            let (mut refused, mut accepted) = (0, 0);
            for (&(page, _), result) in batch.iter().zip(results) {
                match result {
                    Ok(()) => {
                        accepted += 1;
                        stored.push(page);
                    }
                    Err(CopyInError::Full) => refused += 1,
                    Err(CopyInError::Dead) => panic!("{rule}: page {page} is refused as dead"),
                }
            }
            let now = self.device.stored_bytes();
            if refused > 0 && accepted == 0 {
                assert!(
                    now <= bytes + SLACK,
                    "{rule}: a batch that was refused is stored: {bytes} bytes, now {now}"
                );
                break;
            }
            bytes = now;
        }
        assert!(!stored.is_empty(), "an empty device is not full");
        for page in stored {
            self.check(page, PageKind::Random, page.into(), rule);
            self.free(page);
        }
        self.assert_empty();
    }
}
