//! Install and finalize, and the way back.

use super::{Copied, Destination, Hands, Item, Origin};
use crate::addr::{DeviceAddr, Home, PageData, PageNo, PageRange};
use crate::claims::Single;
use crate::entry::State;
use crate::events::Event;
use crate::fault::Ram;
use crate::mmu::{Mmu, Progress, Stop, Tracking};
use crate::space::Space;
use std::collections::VecDeque;

impl<M: Mmu> Hands<'_, M> {
    /// Puts back what does not go.
    pub(super) fn install(&mut self) {
        let in_flight = |item: &Item<'_, M>| {
            matches!(item.copied, Copied::ToDevice { fence: Some(_) }) && !self.goes(item)
        };
        if self.items.iter().any(in_flight) {
            // What is put back gives its destination up, which nobody may be writing to.
            self.wait_for_fences();
        }
        for item in std::mem::take(&mut self.items) {
            if self.goes(&item) {
                self.items.push(item);
            } else {
                self.put_back(item);
            }
        }
    }

    /// Whether the page can go where it is to go.
    fn goes(&self, item: &Item<'_, M>) -> bool {
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
                matches!(item.origin, Origin::Bytes { .. }) && item.to == Some(Destination::System)
            }
        };
        // Its memory may have failed meanwhile.
        let good = !matches!(item.to, Some(Destination::Device(to))
            if self.space.device(to.device).is_bad(to.page));
        item.migrate && free && copied && good
    }

    pub(super) fn finalize(&mut self) {
        self.wait_for_fences();
        self.leave_bad_destinations();
        let mut items = VecDeque::from(std::mem::take(&mut self.items));
        while let Some(first) = items.front() {
            match Together::of(first, self.space) {
                Some(together) => {
                    let goes_along = |(i, item)| together.takes(i, item);
                    let len = (0..)
                        .zip(&items)
                        .take_while(|&pair| goes_along(pair))
                        .count();
                    self.finalize_together(&together, len, &mut items);
                }
                None => {
                    let item = items.pop_front().expect("there is a first");
                    self.finalize_alone(item);
                }
            }
        }
        self.end_blocks();
    }

    /// Waits for copies that were started. Of a batch that failed, nothing is stored.
    fn wait_for_fences(&mut self) {
        let failed: Vec<bool> = self
            .fences
            .drain(..)
            .map(|fence| fence.wait().is_err())
            .collect();
        for item in &mut self.items {
            if let (&Copied::ToDevice { fence: Some(fence) }, Some(Destination::Device(at))) =
                (&item.copied, item.to)
            {
                item.copied = Copied::ToDevice { fence: None };
                if failed[fence] {
                    self.space.device(at.device).clear_stored(at.page);
                    item.copied = Copied::No;
                }
            }
        }
    }

    /// A page that nothing is mapped for: it goes to memory that the CPU does not map, or is lost, or
    /// stays.
    fn finalize_alone(&mut self, item: Item<'_, M>) {
        match (&item.copied, item.to) {
            (Copied::Lost, _) => self.lose(item),
            (Copied::ToDevice { .. }, Some(Destination::Device(to))) => {
                self.settle_on_device(item, to, State::Private(to));
            }
            (Copied::No, Some(Destination::System)) => self.finalize_bytes(item),
            _ => self.put_back(item),
        }
    }

    /// Nothing goes to memory that has failed meanwhile.
    fn leave_bad_destinations(&mut self) {
        for item in &mut self.items {
            if let Some(Destination::Device(at)) = item.to
                && self.space.device(at.device).is_bad(at.page)
            {
                item.copied = Copied::No;
            }
        }
    }

    fn settle_on_device(&mut self, item: Item<'_, M>, to: DeviceAddr, state: State) {
        let space = self.space;
        let Item {
            claimed, origin, ..
        } = item;
        space.device(to.device).set_owner(to.page, claimed.page());
        claimed.settle(state);
        space.stats().pages_to_device.add(1);
        self.leave(origin);
    }

    /// Maps pages side by side with one call, as far as it goes; a page that does not go is put back.
    fn finalize_together(
        &mut self,
        together: &Together,
        len: usize,
        items: &mut VecDeque<Item<'_, M>>,
    ) {
        let space = self.space;
        let pages = PageRange::new(together.page, len);
        let (done, stop) = match together.to {
            To::Arena(first) => {
                let put = space.mmu.put(Home::Arena(first), pages);
                (put.pages, put.stop)
            }
            To::Ram { buffer, index } => {
                let from = &self.buffers[buffer][index..index + len];
                (space.fill(from, together.page), None)
            }
        };
        for i in 0..done {
            let item = items.pop_front().expect("as many as go together");
            match together.to {
                To::Arena(first) => {
                    let to = first.plus(i);
                    self.settle_on_device(item, to, State::Coherent(to));
                }
                To::Ram { .. } => self.settle_in_ram(item),
            }
        }
        if done == 0 {
            // (Where some were done, the next call begins with the one that stopped this.)
            let odd = items.pop_front().expect("as many as go together");
            match together.to {
                // Frames cannot be moved into a range that is not writable.
                To::Arena(to) if self.unmapped && stop == Some(Stop::Protected) => {
                    self.settle_on_device(odd, to, State::Private(to));
                }
                // The mapping does not take it, or there is no RAM: best effort.
                _ => self.put_back(odd),
            }
        }
    }

    fn settle_in_ram(&mut self, item: Item<'_, M>) {
        let Item {
            claimed, origin, ..
        } = item;
        claimed.settle(State::system(true));
        self.space.stats().pages_to_system.add(1);
        if let Origin::Device { at, held } = origin {
            held.leave(self.space.device_stats(at.device));
        }
        self.done.migrated += 1;
    }

    /// The bytes of a page of a range that is not writable: they are in no buffer, and perhaps charged.
    fn finalize_bytes(&mut self, item: Item<'_, M>) {
        let Origin::Bytes { data, charged } = &item.origin else {
            unreachable!("install keeps what has bytes");
        };
        let page = item.claimed.page();
        if *charged {
            self.space.map_bytes(page, data);
        } else if self.space.fill(std::slice::from_ref(&**data), page) == 0 {
            self.put_back(item);
            return;
        }
        self.settle_in_ram(item);
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
        let page = claimed.page();
        space.mmu.poison(page);
        claimed.settle(State::Poisoned);
        space.stats().poisoned_pages.add(1);
        let address = page.address();
        space.events.tell(Event::PagePoisoned { address });
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

    /// Gives back what the migration used: buffers, and the blocks that frames were taken into. What is
    /// free in those goes back to the machine, and what is still a page's waits in limbo.
    fn end_blocks(&mut self) {
        for block in self.blocks.drain(..) {
            self.space.end_block(block);
        }
        for buffer in self.buffers.drain(..) {
            self.space.buffers.give(buffer);
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

/// Where pages go that are mapped together.
#[derive(Clone, Copy)]
enum To {
    /// To these device pages, which the CPU maps.
    Arena(DeviceAddr),
    /// To RAM, from this place of this buffer on.
    Ram { buffer: usize, index: usize },
}

/// Pages that lie side by side at both ends, so that one call maps them.
struct Together {
    page: PageNo,
    to: To,
}

impl Together {
    fn of<M: Mmu>(first: &Item<'_, M>, space: &Space<M>) -> Option<Self> {
        let page = first.claimed.page();
        let to = match (&first.copied, first.to?) {
            (&Copied::ToBuffer { buffer, index }, Destination::System) => To::Ram { buffer, index },
            (Copied::ToDevice { .. }, Destination::Device(to))
                if space.device(to.device).memory_type().is_mapped() =>
            {
                To::Arena(to)
            }
            _ => return None,
        };
        Some(Self { page, to })
    }

    /// Whether the item at place `i` after the first goes along with it.
    fn takes<M: Mmu>(&self, i: usize, item: &Item<'_, M>) -> bool {
        let to = match self.to {
            To::Arena(first) => {
                matches!(item.copied, Copied::ToDevice { .. })
                    && item.to == Some(Destination::Device(first.plus(i)))
            }
            To::Ram { buffer, index } => {
                item.to == Some(Destination::System)
                    && matches!(item.copied, Copied::ToBuffer { buffer: b, index: n }
                        if b == buffer && n == index + i)
            }
        };
        to && item.claimed.page() == self.page.plus(i)
    }
}

impl<M: Mmu> Space<M> {
    /// Maps copies of `from` at the claimed, missing pages from `page` on, as far as there is RAM;
    /// returns how many.
    fn fill(&self, from: &[PageData], page: PageNo) -> usize {
        let Some(ram) = self.ram_for(from.len()) else {
            return 0;
        };
        let most = match ram {
            Ram::Charged(pages) => pages,
            Ram::Warm(_) => 1,
        };
        let (progress, unused) = self.install(&from[..most], page, ram, Tracking::Off);
        if let Some(ram) = unused {
            self.give_back(ram);
        }
        // A page that is there although its entry says otherwise was mapped behind our back; what the
        // program sees is what counts.
        if progress.pages == 0 && progress.stop == Some(Stop::Present) {
            self.pool.charge_existing(1, self.stats());
            return 1;
        }
        progress.pages
    }

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
    pub(crate) fn map_home(&self, claimed: Single<'_, M>, at: DeviceAddr) {
        if matches!(claimed.was(), State::Coherent(_)) {
            let one = PageRange::new(claimed.page(), 1);
            let mapped = self.mmu.put(Home::Arena(at), one).pages == 1;
            // Where it is not, a touch brings it to RAM. Shared it is no more, either way.
            claimed.settle(match mapped {
                true => State::Coherent(at),
                false => State::Private(at),
            });
        }
    }
}
