//! What programs do to ranges: drop their contents, or move them elsewhere.
//!
//! These run on application threads: they bury device pages instead of freeing them, and wait for
//! nobody but the owner of a page in flight.

use crate::addr::{DeviceAddr, FrameNo, Home, PageData, PageNo, PageRange};
use crate::claims::{Run, Single};
use crate::entry::State;
use crate::error::RangeError;
use crate::frames::BLOCK;
use crate::gate::Pass;
use crate::hints::Hints;
use crate::mirror::{Event, Invalidating};
use crate::mmu::{Mmu, Stop, Tracking};
use crate::space::Space;
use arrayvec::ArrayVec;
use std::time::Duration;

/// How long an application thread waits for a fork to end; see [`crate::gate`].
const FORK_PATIENCE: Duration = Duration::from_millis(200);

/// Proof of being inside the gate, for what an application thread does in several steps.
pub struct Inside<'a, M: Mmu> {
    _pass: Pass<'a, M>,
    pub(crate) space: &'a Space<M>,
}

impl<M: Mmu> Space<M> {
    /// Enters the gate, so that no fork comes between the caller's steps.
    ///
    /// # Errors
    /// [`RangeError::Forking`] when a fork is going on and does not end in time.
    pub fn inside(&self) -> Result<Inside<'_, M>, RangeError> {
        let pass = self.gate.enter_within(&self.mmu, FORK_PATIENCE)?;
        Ok(Inside {
            _pass: pass,
            space: self,
        })
    }
}

impl<M: Mmu> Inside<'_, M> {
    /// Drops the contents of `pages`: they read as zero from now on.
    ///
    /// # Errors
    /// [`RangeError::NotManaged`]; [`RangeError::Pinned`], with nothing dropped, or, when a pin has come
    /// meanwhile, with nothing dropped from the pinned page on.
    pub fn discard(&self, pages: PageRange) -> Result<(), RangeError> {
        self.check_unpinned(pages)?;
        let _changing = self.space.invalidating(pages, Event::Clear);
        self.drop_pages(pages)
    }

    /// Tells devices that have some of `pages` in a page table of their own that these are about to
    /// change, and keeps them from looking until the guard is dropped.
    pub fn invalidating(&self, pages: PageRange, event: Event) -> Invalidating {
        self.space.invalidating(pages, event)
    }

    /// Whether none of `pages` is pinned: pinned memory is not dropped, moved or unmapped (R11).
    ///
    /// # Errors
    /// [`RangeError::NotManaged`], [`RangeError::Pinned`].
    pub fn check_unpinned(&self, pages: PageRange) -> Result<(), RangeError> {
        if !self.space.range().covers(pages) {
            return Err(RangeError::NotManaged);
        }
        if self.space.has_pins(pages) {
            return Err(RangeError::Pinned);
        }
        Ok(())
    }

    /// What is wanted of `pages`, run by run.
    ///
    /// # Errors
    /// [`RangeError::NotManaged`].
    pub fn hints(&self, pages: PageRange) -> Result<Vec<(PageRange, Hints)>, RangeError> {
        if !self.space.range().covers(pages) {
            return Err(RangeError::NotManaged);
        }
        let mut runs: Vec<(PageRange, Hints)> = Vec::new();
        for (run, hints) in self.space.hints.runs(pages) {
            match runs.last_mut() {
                Some((last, same)) if *same == hints => last.len += run.len,
                _ => runs.push((run, hints)),
            }
        }
        Ok(runs)
    }

    /// Gives `pages` these hints, in place of those that they have.
    ///
    /// # Errors
    /// [`RangeError::NotManaged`].
    pub fn set_hints(&self, pages: PageRange, hints: Hints) -> Result<(), RangeError> {
        if !self.space.range().covers(pages) {
            return Err(RangeError::NotManaged);
        }
        self.space.hints.set(pages, hints);
        Ok(())
    }

    /// Takes the second chance of `pages` away: reclaim takes them before others, when RAM is short.
    ///
    /// # Errors
    /// [`RangeError::NotManaged`].
    pub fn cool(&self, pages: PageRange) -> Result<(), RangeError> {
        if !self.space.range().covers(pages) {
            return Err(RangeError::NotManaged);
        }
        let entries = &self.space.entries;
        entries.for_each_used(pages, |page, seen| {
            if let State::System {
                referenced: true, ..
            } = seen.state()
            {
                entries.clear_referenced(page, seen);
            }
        });
        Ok(())
    }

    /// Takes the frames of mapped device pages home, which must come before the range's access is
    /// taken away. What they hold is dropped.
    ///
    /// # Errors
    /// [`RangeError::NotManaged`].
    pub fn release_device_pages(&self, pages: PageRange) -> Result<(), RangeError> {
        if !self.space.range().covers(pages) {
            return Err(RangeError::NotManaged);
        }
        let _changing = self.space.invalidating(pages, Event::Clear);
        self.space.entries.for_each_used(pages, |page, word| {
            if let State::Coherent(at) = word.state() {
                self.send_home(page, at);
            }
        });
        Ok(())
    }

    fn drop_pages(&self, pages: PageRange) -> Result<(), RangeError> {
        let (mut next, mut pinned) = (pages.start, false);
        self.space.entries.for_each_used(pages, |page, _| {
            if page >= next && !pinned {
                let dealt = self.drop_run(page, (pages.end().0 - page.0) as usize);
                pinned = dealt == 0;
                next = page.plus(dealt);
            }
        });
        if pinned {
            return Err(RangeError::Pinned);
        }
        Ok(())
    }

    /// Drops a run of pages from `page` on; returns how many were dealt with: none where `page` is
    /// pinned.
    ///
    /// They are claimed until their memory is gone: a page whose entry says None while its old bytes
    /// are still mapped could be migrated, and they would come back to life (R10).
    fn drop_run(&self, page: PageNo, most: usize) -> usize {
        let space = self.space;
        let dropped_here =
            |state| !matches!(state, State::None | State::Coherent(_) | State::Migrating);
        loop {
            match space.entries.state(page) {
                State::None => return 1,
                State::Migrating => space.entries.wait(page, &space.mmu),
                State::Coherent(at) if self.send_home(page, at) => return 1,
                _ => {}
            }
            let mut run = Run::collect(space, page, most, |_, state| dropped_here(state));
            let len = run.pages().len;
            if len == 0 {
                if space.entries.load(page).pins() > 0 {
                    return 0;
                }
                continue;
            }
            let was: ArrayVec<State, BLOCK> = (0..len).map(|i| run.was(i)).collect();
            for (i, state) in was.iter().enumerate() {
                if let State::Exclusive { holder, .. } = state {
                    // Told of the range, its device may have gone back to it until we claimed it.
                    space.notify_one(*holder, page.plus(i), Event::Clear);
                }
            }
            let marks = |state: &State| matches!(state, State::System { .. } | State::Poisoned);
            if was.iter().any(marks) {
                space.mmu.discard(run.pages());
            }
            run.settle(len, |_| State::None);
            was.into_iter().for_each(|state| space.free_dropped(state));
            return len;
        }
    }

    /// Drops a mapped device page: its frame goes back to the arena. Where that cannot be (it is
    /// pinned, or the range may not be touched any more) the frame is given up with the mapping, and
    /// only what it must keep goes home. `false`: look again.
    fn send_home(&self, page: PageNo, at: DeviceAddr) -> bool {
        let space = self.space;
        let Some(claimed) = Single::claim(space, page, |state| state == State::Coherent(at)) else {
            return false;
        };
        let one = PageRange::new(page, 1);
        if space.mmu.take(one, Home::Arena(at)).pages == 0 {
            space.drop_mapped(page, at);
        }
        claimed.settle(State::None);
        space.device(at.device).bury(at.page);
        true
    }

    /// Moves the contents of `from` to the fresh, untouched pages from `to` on, which reads as
    /// zero otherwise; `from` reads as zero afterwards. Nobody may touch or pin either meanwhile; devices
    /// that have some of either in a page table of their own are told.
    ///
    /// # Errors
    /// [`RangeError::NotManaged`], [`RangeError::Pinned`], with nothing moved.
    pub fn relocate(&self, from: PageRange, to: PageNo) -> Result<(), RangeError> {
        let space = self.space;
        let range = space.range();
        if !range.covers(from) || !range.covers(PageRange::new(to, from.len)) {
            return Err(RangeError::NotManaged);
        }
        self.check_unpinned(from)?;
        let _changing = space.invalidating(from, Event::Unmap);
        let _changing = space.invalidating(PageRange::new(to, from.len), Event::Unmap);
        let mut next = from.start;
        space.entries.for_each_used(from, |page, _| {
            if page < next {
                return;
            }
            next = page.plus(1);
            let offset = (page.0 - from.start.0) as usize;
            let most = (from.end().0 - page.0) as usize;
            let moved = self.relocate_run(page, most.min(BLOCK), to.plus(offset));
            next = page.plus(moved.max(1));
        });
        Ok(())
    }

    /// Moves a run of pages in one state; returns how many.
    fn relocate_run(&self, from: PageNo, most: usize, to: PageNo) -> usize {
        let space = self.space;
        loop {
            let first = space.entries.state(from);
            if let State::System {
                duplicate: Some(_), ..
            } = first
            {
                // Writes at the new place are not tracked.
                if let Some(claimed) = Single::claim(space, from, |state| state == first) {
                    space.bury_duplicate(claimed);
                }
                continue;
            }
            if matches!(first, State::Exclusive { .. }) {
                space.end_exclusive(from);
                continue;
            }
            if space.entries.load(from).is_shared() {
                // As above.
                if !Single::claim_shared(space, from).is_some_and(|page| space.own_in_place(page)) {
                    std::thread::yield_now();
                }
                continue;
            }
            let same = |i, state| match (first, state) {
                (State::System { .. }, State::System { duplicate, .. }) => duplicate.is_none(),
                (State::Limbo(slot), state) => state == State::Limbo(slot.plus(i)),
                (State::Private(_) | State::Coherent(_) | State::Poisoned, _) => {
                    i == 0 && state == first
                }
                _ => false,
            };
            let mut run = Run::collect(space, from, most, same);
            if run.pages().len == 0 {
                match space.entries.state(from) {
                    State::None => return 1,
                    State::Migrating => space.entries.wait(from, &space.mmu),
                    _ => {}
                }
                continue;
            }
            // The other end is claimed too. Nobody touches it, but a fault beside it may have brought
            // in pages of zeros ahead of their use; those go.
            let fresh = |_, state| state == State::None;
            let mut target = Run::collect(space, to, run.pages().len, fresh);
            if target.pages().len == 0 {
                drop(run);
                self.drop_run(to, 1);
                continue;
            }
            run.truncate(target.pages().len);
            let len = run.pages().len;
            let moved = match first {
                State::Private(at) => {
                    space.device(at.device).set_owner(at.page, to);
                    1
                }
                State::Coherent(at) => {
                    let progress = self.move_or_unshare(run.pages(), to);
                    if progress > 0 {
                        space.device(at.device).set_owner(at.page, to);
                    }
                    progress
                }
                State::Limbo(slot) => {
                    let progress = space.mmu.put(Home::Pool(slot), PageRange::new(to, len));
                    space.pool.moved_out(slot, progress.pages);
                    progress.pages
                }
                State::Poisoned => {
                    space.mmu.poison(to);
                    // The marker here goes with it.
                    space.mmu.discard(PageRange::new(from, 1));
                    1
                }
                _ => self.move_mapped(run.pages(), to),
            };
            let state = match first {
                State::Limbo(_) | State::System { .. } => State::system(false),
                other => other,
            };

            target.settle(moved, |_| state);
            run.settle(moved, |_| State::None);
            if moved > 0 {
                return moved;
            }
            // What is mapped at a claimed entry that says None is not known to anyone.
            space.mmu.discard(target.pages());
            if first.is_mapped() && !space.is_present(from) {
                // Dropped behind our back: it reads as zero, there and here.
                run.settle(1, |_| State::None);
                match first {
                    State::Coherent(at) => space.device(at.device).bury(at.page),
                    _ => space.pool.uncharge(1, space.stats()),
                }
                return 1;
            }
            drop((run, target));
            match first {
                State::Limbo(slot) if self.relocate_frame(from, slot, to) => return 1,
                // The page of a device whose frame cannot be moved goes on as a page in RAM.
                State::Coherent(at) if self.relocate_bytes(from, at, to) => return 1,
                _ => {}
            }
            std::thread::yield_now();
        }
    }

    /// Moves mapped pages, which are made private to this process where they are not.
    fn move_or_unshare(&self, from: PageRange, to: PageNo) -> usize {
        let mmu = &self.space.mmu;
        let mut progress = mmu.relocate(from, to);
        if progress.pages == 0 && progress.stop == Some(Stop::Busy) {
            mmu.unshare(from);
            progress = mmu.relocate(from, to);
        }
        progress.pages
    }

    /// Moves mapped pages; what cannot be moved (pinned, not writable) is copied.
    fn move_mapped(&self, from: PageRange, to: PageNo) -> usize {
        let moved = self.move_or_unshare(from, to);
        if moved > 0 {
            return moved;
        }
        let mmu = &self.space.mmu;
        let mut data = [PageData::ZERO];
        if mmu.peek(from.start, &mut data[0]) && mmu.copy(&data, to, Tracking::Off).pages == 1 {
            mmu.discard(PageRange::new(from.start, 1));
            return 1;
        }
        0
    }

    /// A mapped device page that cannot be moved: its bytes are copied, to RAM. `false`: look again.
    fn relocate_bytes(&self, from: PageNo, at: DeviceAddr, to: PageNo) -> bool {
        let space = self.space;
        let mut run = Run::collect(space, from, 1, |_, state| state == State::Coherent(at));
        let mut target = Run::collect(space, to, 1, |_, state| state == State::None);
        if run.first().is_none() || target.first().is_none() {
            return false;
        }
        let mut data = [PageData::ZERO];
        if !space.mmu.peek(from, &mut data[0])
            || space.mmu.copy(&data, to, Tracking::Off).pages == 0
        {
            return false;
        }
        space.drop_mapped(from, at);
        space.pool.charge_existing(1, space.stats());
        target.settle(1, |_| State::system(false));
        run.settle(1, |_| State::None);
        space.device(at.device).bury(at.page);
        true
    }

    /// A frame in limbo that cannot be moved to a range that is not writable: its bytes are copied.
    /// `false`: look again.
    fn relocate_frame(&self, from: PageNo, slot: FrameNo, to: PageNo) -> bool {
        let space = self.space;
        let mut run = Run::collect(space, from, 1, |_, state| state == State::Limbo(slot));
        let mut target = Run::collect(space, to, 1, |_, state| state == State::None);
        if run.first().is_none() || target.first().is_none() {
            return false;
        }
        let frame = space.pool.claim_limbo(slot);
        let mut data = [PageData::ZERO];
        space
            .mmu
            .with_frame(&frame, &mut |bytes| data[0].0.copy_from_slice(&bytes.0));
        if space.mmu.copy(&data, to, Tracking::Off).pages == 0 {
            return false;
        }
        space.pool.charge_existing(1, space.stats());
        target.settle(1, |_| State::system(false));
        run.settle(1, |_| State::None);
        space.pool.put_free(frame);
        true
    }
}
