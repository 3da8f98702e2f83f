//! The second half of reclaim: pages in limbo are copied to a device, and their frames given back.

use crate::addr::{PageData, PageNo};
use crate::device::CopyInError;
use crate::entry::{DeviceAddr, State};
use crate::frames::{BLOCK, first_slot};
use crate::migrate::Run;
use crate::mmu::Mmu;
use crate::space::Space;
use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;

/// Blocks with pages in limbo, the oldest first.
pub(super) struct Queue {
    pub(super) blocks: VecDeque<u32>,
    /// For each block of the pool: whether the hand, the queue or the reclaimer has it.
    pub(super) busy: Box<[bool]>,
}

impl Queue {
    pub(super) fn new(blocks: usize) -> Self {
        Self {
            // Room for every block, so that the queue never allocates.
            blocks: VecDeque::with_capacity(blocks),
            busy: vec![false; blocks].into(),
        }
    }
}

impl<M: Mmu> Space<M> {
    /// Stores what can be stored of the block that has been in limbo longest; returns whether any
    /// page was, or the block was done with.
    pub(super) fn clean_block(&self) -> bool {
        let Some(block) = self.reclaim.queue.lock().blocks.pop_front() else {
            return false;
        };
        let mut stored = false;
        let mut bits = self.pool.in_limbo(block);
        while bits != 0 {
            let slot = first_slot(block).plus(bits.trailing_zeros() as usize);
            bits &= bits - 1;
            stored |= self.clean(self.pool.owner(slot), State::Limbo(slot));
        }
        self.pool.shed(block, self.stats(), |slot, len| {
            self.mmu.drop_frames(slot, len)
        });
        let mut queue = self.reclaim.queue.lock();
        if self.pool.in_limbo(block) != 0 {
            // Some page found no room, or was in a fault's hands just now.
            queue.blocks.push_back(block);
            return stored;
        }
        self.reclaim.limbo_slots.fetch_sub(BLOCK, Relaxed);
        queue.busy[block as usize] = false;
        self.pool.reconsider(block);
        true
    }

    /// Copy, install, finalize: one page from limbo to a device. `false`: no device has room, or the
    /// page was touched, or is in somebody's hands.
    fn clean(&self, page: PageNo, expected: State) -> bool {
        let mut run = Run::collect(self, page, 1, |_, state| state == expected);
        let Some(State::Limbo(slot)) = run.first() else {
            return false;
        };
        let frame = self.pool.claim_limbo(slot);
        let mut stored = Err(CopyInError::Full);
        self.mmu
            .with_frame(&frame, &mut |data| stored = self.store(page, data));
        // Without room, dropping the run leaves the page in limbo, with the frame.
        let Ok(at) = stored else { return false };
        run.settle(1, |_| State::Private(at));
        self.pool.put_free(frame);
        true
    }

    /// Stores a page on the first device that takes it.
    pub(super) fn store(&self, page: PageNo, data: &PageData) -> Result<DeviceAddr, CopyInError> {
        for (i, device) in self.devices.iter().enumerate() {
            if device.is_dying() {
                continue;
            }
            let device_index = i as u8;
            if let Ok(at) = device.store(page, data, self.device_stats(device_index)) {
                self.stats().pages_to_device.add(1);
                return Ok(DeviceAddr {
                    device: device_index,
                    page: at,
                });
            }
        }
        Err(CopyInError::Full)
    }
}
