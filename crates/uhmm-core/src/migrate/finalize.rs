//! Install and finalize, and the way back.

use super::{Copied, Destination, Hands, Item, Origin};
use crate::addr::{DeviceAddr, Home, PageData, PageNo, PageRange};
use crate::claims::Single;
use crate::entry::State;
use crate::mmu::{Mmu, Progress, Stop, Tracking};
use crate::space::Space;

impl<M: Mmu> Hands<'_, M> {
    /// Puts back what does not go.
    pub(super) fn install(&mut self) {
        for item in std::mem::take(&mut self.items) {
            let free = match &item.origin {
                // Somebody may have come to hold the page since it was collected.
                Origin::Device { at, held } => self.is_ours_alone(*at, held.count()),
                _ => true,
            };
            let copied = match item.copied {
                Copied::ToDevice { .. } => true,
                Copied::ToBuffer { .. } => item.to == Some(Destination::System),
                Copied::Lost => true,
                // What is in a buffer of its own needs no copy to go to RAM.
                Copied::No => {
                    matches!(item.origin, Origin::Bytes { .. })
                        && item.to == Some(Destination::System)
                }
            };
            if item.migrate && free && copied {
                self.items.push(item);
            } else {
                self.put_back(item);
            }
        }
    }

    pub(super) fn finalize(&mut self) {
        self.wait_for_fences();
        for item in std::mem::take(&mut self.items) {
            self.finalize_one(item);
        }
        self.end_blocks();
    }

    /// Waits for copies that were started. Of a batch that failed, nothing is stored.
    fn wait_for_fences(&mut self) {
        let failed: Vec<bool> = self
            .fences
            .drain(..)
            .map(|mut fence| fence.wait().is_err())
            .collect();
        for item in &mut self.items {
            if let (Copied::ToDevice { fence: Some(fence) }, Some(Destination::Device(at))) =
                (&item.copied, item.to)
                && failed[*fence]
            {
                self.space.device(at.device).clear_stored(at.page);
                item.copied = Copied::No;
            }
        }
    }

    fn finalize_one(&mut self, item: Item<'_, M>) {
        let page = item.claimed.page();
        match (&item.copied, item.to) {
            (Copied::Lost, _) => self.lose(item),
            (Copied::ToDevice { .. }, Some(Destination::Device(to))) => {
                let space = self.space;
                let memory = space.device(to.device);
                let mapped = memory.memory_type().is_mapped();
                let one = PageRange::new(page, 1);
                if mapped && space.mmu.put(Home::Arena(to), one).pages == 0 {
                    // The mapping does not take it: best effort.
                    self.put_back(item);
                    return;
                }
                let Item {
                    claimed, origin, ..
                } = item;
                memory.set_owner(to.page, page);
                claimed.settle(if mapped {
                    State::Coherent(to)
                } else {
                    State::Private(to)
                });
                space.stats().pages_to_device.add(1);
                self.leave(origin);
            }
            (_, Some(Destination::System)) => self.finalize_to_system(item),
            _ => self.put_back(item),
        }
    }

    fn finalize_to_system(&mut self, item: Item<'_, M>) {
        let space = self.space;
        let page = item.claimed.page();
        let charged = matches!(item.origin, Origin::Bytes { charged: true, .. });
        if !charged && !space.pool.try_charge(1, space.stats()) {
            self.put_back(item);
            return;
        }
        let data = match (&item.copied, &item.origin) {
            (&Copied::ToBuffer { buffer, index }, _) => &self.buffers[buffer][index],
            (_, Origin::Bytes { data, .. }) => &**data,
            _ => unreachable!("install keeps what has bytes"),
        };
        let from = std::slice::from_ref(data);
        let progress = space.mmu.copy(from, page, Tracking::Off);
        // A page that is there although its entry says otherwise was mapped behind our back; what the
        // program sees is what counts.
        let there = progress.pages == 1 || progress.stop == Some(Stop::Present);
        if !there {
            if !charged {
                space.pool.uncharge(1, space.stats());
            }
            self.put_back(item);
            return;
        }
        let Item {
            claimed, origin, ..
        } = item;
        claimed.settle(State::system(true));
        space.stats().pages_to_system.add(1);
        if let Origin::Device { at, held } = origin {
            held.leave(space.device_stats(at.device));
        }
        self.done.migrated += 1;
    }

    /// The page has gone to a device: what it leaves behind is free.
    fn leave(&mut self, origin: Origin<'_, M>) {
        let space = self.space;
        match origin {
            Origin::Hole => {}
            Origin::Frame(frame) => space.pool.put_free(frame),
            Origin::Bytes { charged, .. } => {
                space.pool.uncharge(usize::from(charged), space.stats());
            }
            Origin::Device { at, held } => held.leave(space.device_stats(at.device)),
        }
        self.done.migrated += 1;
    }

    /// The device has lost the page's bytes (R9).
    fn lose(&mut self, item: Item<'_, M>) {
        let space = self.space;
        self.free_destination(&item);
        let Item {
            claimed, origin, ..
        } = item;
        space.mmu.poison(claimed.page());
        claimed.settle(State::Poisoned);
        space.stats().poisoned_pages.add(1);
        if let Origin::Device { at, held } = origin {
            held.leave(space.device_stats(at.device));
        }
        self.done.left += 1;
    }

    fn free_destination(&self, item: &Item<'_, M>) {
        if let Some(Destination::Device(at)) = item.to {
            self.space.put_page(at);
        }
    }

    /// Makes the page what it was.
    fn put_back(&mut self, item: Item<'_, M>) {
        let space = self.space;
        self.free_destination(&item);
        let Item {
            claimed, origin, ..
        } = item;
        match origin {
            // Dropping the claim restores the entry, and nothing else has changed.
            Origin::Hole => drop(claimed),
            Origin::Frame(frame) => {
                let one = PageRange::new(claimed.page(), 1);
                let slot = frame.slot();
                if space.mmu.put(Home::Pool(slot), one).pages == 1 {
                    space.pool.moved_out(slot, 1);
                    claimed.settle(State::system(true));
                } else {
                    // A touch brings it back, by a copy where the frame cannot be moved.
                    claimed.settle(State::Limbo(slot));
                }
            }
            Origin::Bytes { data, charged } => {
                space.map_bytes(claimed.page(), &data);
                if !charged {
                    space.pool.charge_existing(1, space.stats());
                }
                claimed.settle(State::system(true));
            }
            Origin::Device { at, held } => {
                space.map_home(claimed, at);
                held.end(space.device_stats(at.device));
            }
        }
        self.done.left += 1;
    }

    /// The blocks that frames were taken into: what is free in them goes back to the machine, and what
    /// is still a page's waits in limbo.
    fn end_blocks(&mut self) {
        for block in self.blocks.drain(..) {
            self.space.end_block(block);
        }
    }
}

impl<M: Mmu> Drop for Hands<'_, M> {
    fn drop(&mut self) {
        // What a copy engine still uses must not be handed to anybody else.
        self.wait_for_fences();
        for item in std::mem::take(&mut self.items) {
            self.put_back(item);
        }
        self.end_blocks();
    }
}

impl<M: Mmu> Space<M> {
    /// Maps bytes that were read out of `page` again. They are nowhere else: it does not give up.
    pub(crate) fn map_bytes(&self, page: PageNo, data: &PageData) {
        let from = std::slice::from_ref(data);
        loop {
            match self.mmu.copy(from, page, Tracking::Off) {
                Progress { pages: 1, .. }
                | Progress {
                    stop: Some(Stop::Present | Stop::Unmapped),
                    ..
                } => return,
                _ => std::thread::yield_now(),
            }
        }
    }

    /// Makes a page what it was whose frame, if it has one, is at home on its device.
    fn map_home(&self, claimed: Single<'_, M>, at: DeviceAddr) {
        if matches!(claimed.was(), State::Coherent(_)) {
            let one = PageRange::new(claimed.page(), 1);
            if self.mmu.put(Home::Arena(at), one).pages == 0 {
                // A touch brings it to RAM.
                claimed.settle(State::Private(at));
                return;
            }
        }
        drop(claimed);
    }
}
