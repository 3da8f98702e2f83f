//! Bytes to device pages and back, whatever the type of the device's memory: a driver copies to and
//! from private memory, and the CPU itself to and from an arena.

use crate::addr::{DeviceAddr, DevicePage, PageData};
use crate::device::{CopyIn, CopyInError, CopyOut, CopyOutError};
use crate::mmu::Mmu;
use crate::pagemap::{AllocError, BATCH, Started};
use crate::space::Space;
use arrayvec::ArrayVec;

/// What came of each page of a batch that was copied in.
pub(crate) type CopiedIn = ArrayVec<Result<(), CopyInError>, BATCH>;

/// What came of each page of a batch that was stored.
pub(crate) type Stored = ArrayVec<Result<DevicePage, CopyInError>, BATCH>;

impl<M: Mmu> Space<M> {
    /// Hands out pages of `device`, with one reference each that is the caller's.
    pub(crate) fn alloc(&self, device: u8, order: u32) -> Result<DevicePage, AllocError> {
        let stats = self.device_stats(device);
        let table = &|len| self.mmu.table(len);
        self.device(device).alloc(order, self.stamp(), stats, table)
    }

    /// Gives a page back that [`Space::alloc`] handed out.
    pub(crate) fn put_page(&self, at: DeviceAddr) {
        self.device(at.device)
            .put(at.page, self.device_stats(at.device));
    }

    /// Copies up to a batch of pages to pages of `device` that the caller has just been given; each
    /// that succeeds is stored. What the fence is still to say holds for all that succeeded.
    pub(crate) fn copy_in(
        &self,
        device: u8,
        from: &[&PageData],
        to: &[DevicePage],
    ) -> (CopiedIn, Option<Started>) {
        let memory = self.device(device);
        // What an arena holds is not the driver's, who hears nothing of it when it is freed either.
        let mapped = memory.memory_type().is_mapped();
        let mut fence = None;
        let results: CopiedIn = if mapped {
            let copy = |(&page, &from)| self.copy_to_arena(DeviceAddr { device, page }, from);
            to.iter().zip(from).map(copy).collect()
        } else if memory.info().batch_pages > 1 {
            let mut copies: ArrayVec<_, BATCH> = to
                .iter()
                .zip(from)
                .map(|(&page, &from)| CopyIn {
                    page,
                    from,
                    result: Err(CopyInError::Full),
                })
                .collect();
            fence = memory.driver().copy_in_batch(&mut copies);
            copies.into_iter().map(|copy| copy.result).collect()
        } else {
            let copy = |(&page, &from)| memory.driver().copy_in(page, from);
            to.iter().zip(from).map(copy).collect()
        };
        for (&page, result) in to.iter().zip(&results) {
            match result {
                Ok(()) if mapped => {}
                Ok(()) => memory.set_stored(page),
                Err(error) => memory.heard(*error),
            }
        }
        (results, fence)
    }

    fn copy_to_arena(&self, at: DeviceAddr, from: &PageData) -> Result<(), CopyInError> {
        let filled = self
            .mmu
            .with_arena(at, &mut |to| to.0.copy_from_slice(&from.0));
        filled.then_some(()).ok_or(CopyInError::Full)
    }

    /// Stores up to a batch of pages on `device`, on new pages that are the caller's then.
    pub(crate) fn store(&self, device: u8, from: &[&PageData]) -> Stored {
        let memory = self.device(device);
        let stats = self.device_stats(device);
        let to: ArrayVec<DevicePage, BATCH> = from
            .iter()
            .map_while(|_| self.alloc(device, 0).ok())
            .collect();
        let (results, fence) = self.copy_in(device, &from[..to.len()], &to);
        let failed = fence.is_some_and(|fence| fence.wait().is_err());
        let mut stored = Stored::new();
        for (&page, result) in to.iter().zip(results) {
            let result = match result {
                Ok(()) if failed => {
                    memory.clear_stored(page);
                    Err(CopyInError::Full)
                }
                result => result,
            };
            if result.is_err() {
                memory.put(page, stats);
            }
            stored.push(result.map(|()| page));
        }
        while stored.len() < from.len() {
            stored.push(Err(CopyInError::Full));
        }
        memory.count_stored(stats);
        stored
    }

    /// Reads a page that is in use and that nobody changes meanwhile. Of an arena: one whose frame is
    /// at home.
    pub(crate) fn load(&self, at: DeviceAddr, to: &mut PageData) -> Result<(), CopyOutError> {
        let memory = self.device(at.device);
        if memory.memory_type().is_mapped() {
            return self.copy_from_arena(at, to);
        }
        memory.driver().copy_out(at.page, to)
    }

    fn copy_from_arena(&self, at: DeviceAddr, to: &mut PageData) -> Result<(), CopyOutError> {
        let there = self
            .mmu
            .with_arena(at, &mut |from| to.0.copy_from_slice(&from.0));
        there.then_some(()).ok_or(CopyOutError::Retry)
    }

    /// Reads several pages of one device, in the manner of [`Space::load`]: `to` has one place for
    /// each of `pages`. What the batch could not bring is asked for again, page by page.
    pub(crate) fn load_batch(
        &self,
        pages: &[DeviceAddr],
        to: &mut [PageData],
    ) -> ArrayVec<Result<(), CopyOutError>, BATCH> {
        let mut results: ArrayVec<Result<(), CopyOutError>, BATCH> =
            pages.iter().map(|_| Err(CopyOutError::Retry)).collect();
        let Some(first) = pages.first() else {
            return results;
        };
        let memory = self.device(first.device);
        let private = !memory.memory_type().is_mapped();
        if private && memory.info().batch_pages > 1 && pages.len() > 1 {
            let mut copies: ArrayVec<_, BATCH> = pages
                .iter()
                .zip(to.iter_mut())
                .map(|(at, to)| CopyOut {
                    page: at.page,
                    to,
                    result: Err(CopyOutError::Retry),
                })
                .collect();
            let fence = memory.driver().copy_out_batch(&mut copies);
            let failed = fence.is_some_and(|fence| fence.wait().is_err());
            if !failed {
                results = copies.into_iter().map(|copy| copy.result).collect();
            }
        }
        for ((&at, to), result) in pages.iter().zip(to).zip(&mut results) {
            if *result == Err(CopyOutError::Retry) {
                *result = self.load(at, to);
            }
        }
        results
    }
}
