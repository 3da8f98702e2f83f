//! Memory that a program had before it was managed, and has again afterwards.
//!
//! # The way in
//!
//! The MMU has given the pages numbers, and serves their faults, before [`Inside::adopt`] is called. So a
//! page that is missing by then is a page like any other: None, and a touch is a fault. A page that is
//! present has been so since before. Its entry says None, which is not true, until it is claimed and
//! settled as System. In between nobody may take it for a hole: requests do not reach the pages before
//! the end (that is the caller's to see to), a fault that looks around finds it present and stops
//! there, and the caller is inside the gate, so no fork comes between. It is charged whatever the
//! budget says, since it exists; reclaim brings that down.
//!
//! # The way out
//!
//! [`Space::hand_back`] claims some pages, brings them all to where the program had them, has the MMU let
//! go of them *while they are claimed*, and only then settles them as None. So at no time is there a page
//! of which the space knows nothing and that it still serves, nor one that it manages and does not serve:
//! a touch waits for the claim or meets memory, and a fork between two such steps finds every page either
//! wholly managed or wholly the program's. RAM is taken for it whatever the budget says, for one step's
//! pages at a time, since they are uncharged with it. Devices that have some of them in a table of their
//! own are told that they are unmapped. Nothing is given up: a page that does not come now, because its
//! device does not answer, or because it is held or pinned, ends the step before it, and the caller
//! tries again.

use crate::addr::{DeviceAddr, FrameNo, Home, PageData, PageNo, PageRange};
use crate::around::MAX_WINDOW;
use crate::claims::{Run, Single};
use crate::device::CopyOutError;
use crate::entry::State;
use crate::error::RangeError;
use crate::events::Event;
use crate::fault::Scratch;
use crate::frames::BLOCK;
use crate::hints::Hints;
use crate::mirror;
use crate::mmu::{Mmu, Progress, Stop, Tracking};
use crate::ranges::Inside;
use crate::space::Space;
use arrayvec::ArrayVec;
use std::slice;

impl<M: Mmu> Inside<'_, M> {
    /// Takes what is present of `pages`, which the MMU serves already, for pages in RAM. Nobody but
    /// faults may reach them before this returns.
    pub fn adopt(&self, pages: PageRange) {
        let space = self.space;
        space.mmu.present(pages, &mut |found| {
            found.iter().for_each(|page| space.adopt_page(page));
        });
        space.relieve();
    }
}

impl<M: Mmu> Space<M> {
    /// How many pages more there is room for: in RAM, and on the devices that cold pages go to.
    pub fn room(&self) -> usize {
        let devices = self.takers();
        let free = devices.map(|(_, memory)| memory.capacity().saturating_sub(memory.in_use()));
        self.pool.available() + free.sum::<usize>()
    }

    fn adopt_page(&self, page: PageNo) {
        loop {
            match self.state(page) {
                State::None => {}
                // A fault that looks around has it for a moment.
                State::Migrating => {
                    self.entries.wait(page, &self.mmu);
                    continue;
                }
                // It was missing when its faults began to be served, and has come by one.
                _ => return,
            }
            if let Some(claimed) = Single::claim(self, page, |state| state == State::None) {
                self.pool.charge_existing(1, self.stats());
                claimed.settle(State::system(false));
                return;
            }
        }
    }

    /// Gives the first of `pages` back to the program, as many as one step takes: brings them to where
    /// they are mapped, calls `let_go` for those that came, and forgets them if it agrees. Returns how many
    /// were given back; 0: not even the first now, because its device does not answer, or it is held or
    /// pinned, and nothing is lost by trying again. For internal threads, and for threads that touch no
    /// managed memory.
    ///
    /// # Errors
    /// [`RangeError::Forking`], [`RangeError::InNotifier`].
    pub fn hand_back(
        &self,
        pages: PageRange,
        scratch: &mut Scratch,
        let_go: &mut dyn FnMut(PageRange) -> bool,
    ) -> Result<usize, RangeError> {
        let _pass = self.gate.enter_soon(&self.mmu)?;
        let pages = PageRange::new(pages.start, pages.len.min(BLOCK));
        let _changing = self.invalidating(pages, mirror::Event::Unmap);
        if matches!(self.state(pages.start), State::Exclusive { .. }) {
            self.end_exclusive(pages.start);
        }
        let own = |_, state| !matches!(state, State::Exclusive { .. });
        let mut step = Step {
            run: Run::collect(self, pages.start, pages.len, own),
            space: self,
            now: ArrayVec::new(),
            left: ArrayVec::new(),
        };
        while step.now.len() < step.run.pages().len && step.bring(scratch) {}
        Ok(step.end(let_go))
    }
}

/// Claimed pages on their way to the program.
struct Step<'a, M: Mmu> {
    space: &'a Space<M>,
    run: Run<'a, M>,
    /// What the first of them have become: None, System, or Poisoned. Those in System are charged.
    now: ArrayVec<State, BLOCK>,
    /// Device pages that they have left behind.
    left: ArrayVec<DeviceAddr, BLOCK>,
}

impl<M: Mmu> Step<'_, M> {
    /// Brings the next page home, and perhaps more. `false`: it does not come now.
    fn bring(&mut self, scratch: &mut Scratch) -> bool {
        let place = self.now.len();
        let page = self.run.pages().start.plus(place);
        let now = match self.run.was(place) {
            State::None => Some(State::None),
            State::Poisoned => Some(State::Poisoned),
            State::System { duplicate, .. } => {
                if let Some(at) = duplicate {
                    self.space.mmu.untrack(page);
                    self.space.count_duplicates(-1);
                    self.left.push(at);
                }
                Some(State::system(false))
            }
            State::Limbo(slot) => self.space.bring_frame(page, slot, &mut scratch.pages[0]),
            State::Private(_) => return self.bring_private(scratch),
            State::Coherent(at) => {
                let shared = self.run.was_shared(place);
                let now = self
                    .space
                    .bring_mapped(page, at, shared, &mut scratch.pages[0]);
                self.left.extend(now.map(|_| at));
                now
            }
            State::Exclusive { .. } | State::Migrating => unreachable!("not claimed here"),
        };
        self.now.extend(now);
        now.is_some()
    }

    /// Brings the next pages home, which one device has, and the CPU does not map.
    fn bring_private(&mut self, scratch: &mut Scratch) -> bool {
        let space = self.space;
        let (start, len) = (self.run.pages().start, self.run.pages().len);
        let mut from = ArrayVec::<DeviceAddr, MAX_WINDOW>::new();
        for place in (self.now.len()..len).take(MAX_WINDOW) {
            match self.run.was(place) {
                State::Private(at)
                    if from.first().is_none_or(|first| first.device == at.device)
                        && !space.is_held(at) =>
                {
                    from.push(at);
                }
                _ => break,
            }
        }
        let results = space.load_batch(&from, &mut scratch.pages);
        for ((at, result), data) in from.iter().zip(results).zip(scratch.pages.iter()) {
            let page = start.plus(self.now.len());
            let now = match result {
                Ok(()) => space.map_whatever_the_budget(page, data),
                Err(CopyOutError::Retry) => None,
                Err(CopyOutError::Lost) => {
                    space.mmu.poison(page);
                    let address = page.address();
                    space.events.tell(Event::PagePoisoned { address });
                    space.stats().poisoned_pages.add(1);
                    Some(State::Poisoned)
                }
            };
            let Some(now) = now else {
                return false;
            };
            self.now.push(now);
            self.left.push(*at);
        }
        !from.is_empty()
    }

    /// Lets go of the pages that came, and ends all claims; returns how many it was.
    fn end(mut self, let_go: &mut dyn FnMut(PageRange) -> bool) -> usize {
        let (space, len) = (self.space, self.now.len());
        self.run.truncate(len);
        let gone = len > 0 && let_go(self.run.pages());
        if gone {
            // Hints are gone with what they were given for.
            space.hints.set(self.run.pages(), Hints::NONE);
        }
        let now = &self.now;
        self.run
            .settle(len, |i| if gone { State::None } else { now[i] });
        if gone {
            let mapped = self.now.iter().filter(|state| state.is_mapped()).count();
            space.pool.uncharge(mapped, space.stats());
        }
        for at in self.left {
            space.put_page(at);
        }
        if gone { len } else { 0 }
    }
}

/// Each for a claimed page. `None`: it does not come now, and is what it was.
impl<M: Mmu> Space<M> {
    /// Whether somebody holds a device page besides the claimed entry that names it (R7).
    fn is_held(&self, at: DeviceAddr) -> bool {
        let held = self.device(at.device).get(at.page);
        let held = held.expect("an entry names a device page that is in use (R1)");
        let others = held.count() > 2;
        held.end(self.device_stats(at.device));
        others
    }

    /// Maps bytes that are nowhere else, and charges the page even above the budget.
    fn map_whatever_the_budget(&self, page: PageNo, data: &PageData) -> Option<State> {
        match self.mmu.copy(slice::from_ref(data), page, Tracking::Off) {
            Progress { pages: 1, .. }
            | Progress {
                stop: Some(Stop::Present),
                ..
            } => {
                self.pool.charge_existing(1, self.stats());
                Some(State::system(false))
            }
            // The program has unmapped it: nobody can ask for the bytes any more.
            Progress {
                stop: Some(Stop::Unmapped),
                ..
            } => Some(State::None),
            _ => None,
        }
    }

    /// A page in limbo: its frame is moved back, or copied where it cannot be moved.
    fn bring_frame(&self, page: PageNo, slot: FrameNo, scratch: &mut PageData) -> Option<State> {
        let one = PageRange::new(page, 1);
        if self.mmu.put(Home::Pool(slot), one).pages == 1 {
            self.pool.moved_out(slot, 1);
            return Some(State::system(false));
        }
        let frame = self.pool.claim_limbo(slot);
        self.mmu
            .with_frame(&frame, &mut |data| scratch.0.copy_from_slice(&data.0));
        let now = self.map_whatever_the_budget(page, scratch)?;
        self.pool.put_free(frame);
        Some(now)
    }

    /// Takes the frame of a page home that is not tracked; what stopped it, if anything did.
    fn take_home(&self, one: PageRange, at: DeviceAddr) -> Option<Stop> {
        let taken = self.mmu.take(one, Home::Arena(at));
        if taken.stop != Some(Stop::Busy) {
            return taken.stop;
        }
        self.mmu.unshare(one);
        self.mmu.take(one, Home::Arena(at)).stop
    }

    /// A mapped device page: its frame is taken home, and its bytes are copied to RAM. A frame that cannot
    /// be moved, because it is pinned, stays where it is, and is the program's from now on.
    fn bring_mapped(
        &self,
        page: PageNo,
        at: DeviceAddr,
        shared: bool,
        scratch: &mut PageData,
    ) -> Option<State> {
        if self.is_held(at) {
            return None;
        }
        let one = PageRange::new(page, 1);
        let stop = if shared && !self.is_ours_alone(page) {
            if !self.copy_home(page, at) {
                return None;
            }
            None
        } else {
            if shared {
                self.mmu.untrack(page);
            }
            self.take_home(one, at)
        };
        match stop {
            None => {}
            Some(Stop::Busy | Stop::Protected) => {
                self.pool.charge_existing(1, self.stats());
                return Some(State::system(false));
            }
            // Dropped behind our back, or unmapped.
            Some(Stop::Absent | Stop::Unmapped) => return Some(State::None),
            Some(_) => return None,
        }
        // The bytes are nowhere else: it goes on until they are mapped, in one place or the other.
        loop {
            if self.load(at, scratch).is_ok()
                && let Some(now) = self.map_whatever_the_budget(page, scratch)
            {
                return Some(now);
            }
            if self.mmu.put(Home::Arena(at), one).pages == 1 {
                return None;
            }
            self.nap();
        }
    }
}
