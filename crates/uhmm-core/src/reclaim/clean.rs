//! The second half of reclaim: pages in limbo are copied to a device, and their frames given back.

use crate::addr::{DeviceAddr, PageData, PageNo};
use crate::claims::Single;
use crate::entry::State;
use crate::frames::{BLOCK, Frame, first_slot};
use crate::memory_type::MemoryType;
use crate::mmu::Mmu;
use crate::pagemap::DeviceMemory;
use crate::space::Space;
use crate::stats::MAX_DEVICES;
use crate::store::Stored;
use arrayvec::ArrayVec;
use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;

/// Pages in limbo that are claimed, with their frames.
type Batch<'a, M> = ArrayVec<(Single<'a, M>, Frame), BLOCK>;

/// What an attempt to clean a block came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cleaned {
    /// There was nothing to store, or others had it in their hands.
    Nothing,
    /// Not one page found room on a device.
    NoRoom,
    /// Pages were stored, or the block is done with.
    Some,
}

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
    /// Stores what can be stored of the block that has been in limbo longest.
    pub(super) fn clean_block(&self) -> Cleaned {
        let Some(block) = self.reclaim.queue.lock().blocks.pop_front() else {
            return Cleaned::Nothing;
        };
        let cleaned = self.clean_pages(block, u64::MAX);
        self.pool.shed(block, self.stats(), |slot, len| {
            self.mmu.drop_frames(slot, len)
        });
        let mut queue = self.reclaim.queue.lock();
        if self.pool.in_limbo(block) != 0 {
            // Some page found no room, or was in a fault's hands just now.
            queue.blocks.push_back(block);
            return cleaned;
        }
        self.reclaim.limbo_slots.fetch_sub(BLOCK, Relaxed);
        queue.busy[block as usize] = false;
        self.pool.reconsider(block);
        Cleaned::Some
    }

    /// The devices to store pages on, in order: those that are being emptied come last.
    pub(crate) fn takers(&self) -> impl Iterator<Item = (u8, &DeviceMemory<M::Table>)> {
        // Only its driver puts pages into memory that the CPU maps (R13).
        let takes = |memory: &DeviceMemory<M::Table>| {
            memory.memory_type() == MemoryType::Private && memory.is_open()
        };
        [false, true].into_iter().flat_map(move |emptying| {
            let devices = self.devices();
            devices
                .filter(move |(_, memory)| takes(memory) && memory.is_being_emptied() == emptying)
        })
    }

    /// Those of them that a page may prefer: not what is being emptied.
    fn preferable(&self) -> impl Iterator<Item = (u8, &DeviceMemory<M::Table>)> {
        self.takers()
            .filter(|(_, memory)| !memory.is_being_emptied())
    }

    /// Copy, install, finalize: what of the slots `bits` of `block` is in limbo, to the device that it
    /// prefers, then to the first devices that have room.
    pub(super) fn clean_pages(&self, block: u32, bits: u64) -> Cleaned {
        let preferred = self.preferred(block, bits);
        let first = self
            .preferable()
            .map(|(device, memory)| (device, memory, preferred[usize::from(device)]));
        let then = self.takers().map(|(device, memory)| (device, memory, bits));
        let mut cleaned = Cleaned::Nothing;
        for (device, memory, some) in first.chain(then) {
            let left = some & self.pool.in_limbo(block);
            cleaned = cleaned.max(self.clean_to(device, memory, block, left));
        }
        cleaned
    }

    /// Which of the slots `bits` of `block` hold pages that prefer each of the devices.
    fn preferred(&self, block: u32, bits: u64) -> [u64; MAX_DEVICES] {
        let mut preferred = [0; MAX_DEVICES];
        if self.hints.were_given() {
            let mut left = bits & self.pool.in_limbo(block);
            while left != 0 {
                let bit = left & left.wrapping_neg();
                left ^= bit;
                let slot = first_slot(block).plus(bit.trailing_zeros() as usize);
                if let Some(device) = self.hints.of(self.pool.owner(slot)).device() {
                    preferred[usize::from(device)] |= bit;
                }
            }
        }
        preferred
    }

    /// What of the slots `left` of `block` is in limbo, to one device, as far as it has room.
    fn clean_to(
        &self,
        device: u8,
        memory: &DeviceMemory<M::Table>,
        block: u32,
        mut left: u64,
    ) -> Cleaned {
        // A touch of a page waits for the whole batch: a device that copies pages one by one gets them
        // one by one.
        let most = usize::from(memory.info().batch_pages).clamp(1, BLOCK);
        let mut cleaned = Cleaned::Nothing;
        while left != 0 {
            let batch = self.claim_limbo_batch(block, &mut left, most);
            let (kept, full) = self.clean_batch(device, batch);
            if kept > 0 {
                cleaned = Cleaned::Some;
            }
            if full {
                return cleaned.max(Cleaned::NoRoom);
            }
        }
        cleaned
    }

    /// Claims up to `most` pages in limbo among the slots `left` of `block`, and takes those that were
    /// looked at out of `left`.
    fn claim_limbo_batch(&self, block: u32, left: &mut u64, most: usize) -> Batch<'_, M> {
        let mut batch = Batch::new();
        while *left != 0 && batch.len() < most {
            let slot = first_slot(block).plus(left.trailing_zeros() as usize);
            *left &= *left - 1;
            let page = self.pool.owner(slot);
            // The page may have been touched, or be in somebody's hands.
            if let Some(claimed) = Single::claim(self, page, |state| state == State::Limbo(slot)) {
                batch.push((claimed, self.pool.claim_limbo(slot)));
            }
        }
        batch
    }

    /// Stores a batch on `device`; what finds no room stays in limbo, with its frame. Returns how
    /// many pages were stored, and whether one was not.
    fn clean_batch(&self, device: u8, batch: Batch<'_, M>) -> (usize, bool) {
        let mut results = Stored::new();
        {
            let frames: ArrayVec<&Frame, BLOCK> = batch.iter().map(|(_, frame)| frame).collect();
            self.mmu
                .with_frames(&frames, &mut |data| results = self.store(device, data));
        }
        let memory = self.device(device);
        let mut stored = 0;
        for ((claimed, frame), result) in batch.into_iter().zip(&results) {
            if let Ok(page) = *result {
                memory.set_owner(page, claimed.page());
                claimed.settle(State::Private(DeviceAddr { device, page }));
                self.pool.put_free(frame);
                stored += 1;
            }
        }
        self.stats().pages_to_device.add(stored as u64);
        (stored, stored < results.len())
    }

    /// Stores one page, for the entry of `owner`, on the device that it prefers, or the first that takes it.
    pub(super) fn store_anywhere(&self, owner: PageNo, data: &PageData) -> Option<DeviceAddr> {
        let preferred = self.hints.of(owner).device();
        let first = self
            .preferable()
            .filter(|(device, _)| preferred == Some(*device));
        let stored = first.chain(self.takers()).find_map(|(device, memory)| {
            let page = self.store(device, &[data]).pop()?.ok()?;
            memory.set_owner(page, owner);
            Some(DeviceAddr { device, page })
        });
        self.stats().pages_to_device.add(stored.is_some().into());
        stored
    }

    /// Frees device pages whose bytes are in RAM too; returns whether there were any. For when the
    /// devices are full.
    pub(super) fn shed_duplicates(&self) -> bool {
        let mut shed = 0;
        if self.duplicates.load(Relaxed) > 0 {
            // On from where the last call has ended, once round at most.
            let range = self.range();
            let mut at = PageNo(self.reclaim.shed_at.load(Relaxed)).max(range.start);
            let mut wraps = 0;
            while shed < BLOCK && wraps < 2 {
                let Some(page) = self.entries.next_mapped(at, range.end()) else {
                    at = range.start;
                    wraps += 1;
                    continue;
                };
                at = page.plus(1);
                if let Some(claimed) = Single::claim_in_place(self, page, State::is_tracked) {
                    self.give_duplicate_up(claimed);
                    shed += 1;
                }
            }
            self.reclaim.shed_at.store(at.0, Relaxed);
        }
        shed > 0
    }
}
