//! Memory for bytes on their way to RAM, or from one device to another: kept warm from one migration to
//! the next, since new memory costs as much as the copy itself.

use crate::addr::PageData;
use crate::lock::Lock;
use crate::pagemap::BATCH;
use arrayvec::ArrayVec;

/// Memory for one batch of pages.
pub(super) type Buffer = Box<[PageData]>;

/// As many as a migration of 2 MiB needs.
const SPARE: usize = 512 / BATCH;

/// Buffers that no migration uses now.
#[derive(Default)]
pub(crate) struct Buffers(Lock<ArrayVec<Buffer, SPARE>>);

impl Buffers {
    /// A buffer for up to [`BATCH`] pages, with whatever was in it.
    pub(super) fn take(&self) -> Buffer {
        let spare = self.0.try_lock().and_then(|mut spare| spare.pop());
        spare.unwrap_or_else(|| vec![PageData::ZERO; BATCH].into())
    }

    /// Gives a buffer back.
    pub(super) fn give(&self, buffer: Buffer) {
        if let Some(mut spare) = self.0.try_lock() {
            // Without a place for it, it is freed.
            let _ = spare.try_push(buffer);
        }
    }
}
