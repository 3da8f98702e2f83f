//! Exclusive access: a page in RAM that is one device's alone, so that the device can do atomic
//! operations there that its bus does not have (device-exclusive entries in Linux).
//!
//! The page's frame is moved out of the program's mapping into a slot of the frame pool; the entry
//! names the slot and the mirror that has it. The charge stays.
//!
//! | edge | by | with it |
//! | --- | --- | --- |
//! | System to Exclusive | a device's thread, `take_exclusive` | claim; all mirrors are told, its own too; a slot is reserved; a look whether the mirror's interval is active; the frame is moved out; settle |
//! | Exclusive to System | whoever wants to see the page, `end_exclusive`: a touch, a pin, another device, a change of protection, a remap, a fork, the end of the mirror | claim; the mirror is told, whose lock its device holds while it works there; the frame is moved back; settle |
//! | Exclusive to None, Poisoned | discard, unmap; memory failure | claim; the mirror is told; the frame is dropped |
//!
//! So nobody else reads or writes the frame between the two, and the device is off it before anybody
//! else sees it (R17). The mirror is told with the claim in hand: who takes its lock after that finds
//! the page Migrating, and keeps off.
//!
//! A fork ends all of it first, and a change of protection all within its range: what a device may do
//! there may be less from then on. Nothing becomes exclusive until that is over: who makes a page so
//! counts it, reserves the slot and then looks at the mirror's sequence; who forks makes the intervals
//! active and then looks for reserved slots. One of the two sees the other.

use super::notifier::{Event, IntervalNotifier, Invalidating, PATIENCE, in_notifier, patience};
use super::{MirrorError, NotifierError};
use crate::addr::{FrameNo, Home, PageData, PageNo, PageRange};
use crate::claims::{Run, Single};
use crate::entry::State;
use crate::fault::{Outcome, Scratch};
use crate::mmu::{Mmu, Stop, Tracking};
use crate::space::Space;
use std::sync::atomic::Ordering::{AcqRel, Acquire, SeqCst};
use std::sync::atomic::fence;
use std::time::Instant;

impl<M: Mmu> Space<M> {
    /// Makes what can be made of `pages` exclusive to the mirror of `notifier`.
    pub(super) fn take_exclusive(
        &self,
        pages: PageRange,
        notifier: &IntervalNotifier<'_, M>,
        scratch: &mut Scratch,
    ) -> Result<(), MirrorError> {
        let number = notifier.interval.number;
        let start = Instant::now();
        let mut at = pages.start;
        while at < pages.end() {
            let most = (pages.end().0 - at.0) as usize;
            let late = start.elapsed() > patience(pages.len);
            if !self.mmu.manages(at) {
                return Err(MirrorError::NotManaged(at));
            }
            match self.state(at) {
                State::Exclusive { holder, .. } if holder == number => at = at.plus(1),
                State::Poisoned => return Err(MirrorError::Poisoned(at)),
                // Device memory that the CPU maps is its driver's already.
                State::Coherent(_) => at = at.plus(1),
                state if late && self.lacks_ram(state) => return Err(MirrorError::NoRam(at)),
                _ if late => return Err(NotifierError::Busy.into()),
                State::Migrating => self.entries.wait(at, &self.mmu),
                State::System { .. } => at = at.plus(self.take_run(at, most, notifier)?),
                State::None | State::Limbo(_) | State::Private(_) | State::Exclusive { .. } => {
                    self.bring(at, true, scratch)?;
                }
            }
        }
        Ok(())
    }

    /// Takes a run of pages in RAM, for a device alone; returns how many were dealt with.
    fn take_run(
        &self,
        at: PageNo,
        most: usize,
        notifier: &IntervalNotifier<'_, M>,
    ) -> Result<usize, MirrorError> {
        let holder = notifier.interval.number;
        let limit = self.keep_limit();
        let room = limit.saturating_sub(self.kept());
        // Waits until nothing is active.
        notifier.read_begin()?;
        let _pass = self.gate.enter_soon(&self.mmu)?;
        if let Some(claimed) = Single::claim(self, at, State::is_tracked) {
            self.give_duplicate_up(claimed);
        }
        let plain = |_, state: State| matches!(state, State::System { .. }) && !state.is_tracked();
        let mut run = Run::collect(self, at, most.min(room.max(1)), plain);
        let len = run.pages().len;
        if len == 0 {
            // Pinned, or it has just changed.
            return Ok(usize::from(self.is_pinned(at)));
        }
        // Counted first: what is exclusive is never missing from the count.
        if !self.keep_some(len) {
            return match room {
                0 => Err(MirrorError::TooMuch { limit }),
                _ => {
                    drop(run);
                    self.nap();
                    Ok(0)
                }
            };
        }
        // The device itself too: another of its threads may be at the page, by its table.
        self.notify(run.pages(), Event::Exclusive);
        let Some((first, reserved)) = self.pool.reserve_exclusive(at, len) else {
            self.keep_no_more(len);
            return Err(MirrorError::TooMuch { limit });
        };
        self.keep_no_more(len - reserved);
        let len = reserved;
        run.truncate(len);
        // Pairs with the one in `end_exclusive_in`.
        fence(SeqCst);
        if notifier.interval.is_active() {
            // A fork, or whoever else changes the range, has come first.
            self.pool.moved_out(first, len);
            self.keep_no_more(len);
            return Ok(0);
        }
        let (mut done, mut unshared) = (0, false);
        let stop = loop {
            let progress = self.mmu.take(run.pages(), Home::Pool(first.plus(done)));
            run.settle(progress.pages, |i| State::Exclusive {
                frame: first.plus(done + i),
                holder,
            });
            done += progress.pages;
            match progress.stop {
                Some(Stop::Busy) if !unshared => {
                    self.mmu.unshare(run.pages());
                    unshared = true;
                }
                stop => break stop,
            }
        };
        self.pool.moved_out(first.plus(done), len - done);
        self.keep_no_more(len - done);
        self.stats().exclusive_pages.add(done as u64);
        if stop == Some(Stop::Busy) {
            self.stats().busy_pages.add(1);
        }
        // The page that stopped it stays what it is: pinned, or not writable.
        Ok(done + usize::from(stop.is_some()))
    }

    /// Ends the exclusive access to a page that is wanted: its device is off it from now on.
    pub(crate) fn end_exclusive(&self, page: PageNo) -> Outcome {
        let is_exclusive = |state| matches!(state, State::Exclusive { .. });
        let Some(claimed) = Single::claim(self, page, is_exclusive) else {
            return Outcome::Again;
        };
        let State::Exclusive { frame, holder } = claimed.was() else {
            return Outcome::Again;
        };
        self.notify_one(holder, page, Event::EndExclusive);
        let one = PageRange::new(page, 1);
        let put = self.mmu.put(Home::Pool(frame), one);
        let back = match put.stop {
            None => {
                self.pool.moved_out(frame, 1);
                true
            }
            // A frame cannot move into a range that is not writable, but its bytes can.
            Some(Stop::Protected) => self.copy_back(frame, page),
            // Mapped behind our back: what the program sees is what counts.
            Some(Stop::Present) => {
                self.drop_frame(frame);
                true
            }
            Some(_) => false,
        };
        if back {
            claimed.settle(State::system(true));
            self.keep_no_more(1);
            self.stats().exclusive_ends.add(1);
        } else {
            // The touch repeats.
            drop(claimed);
        }
        self.served(page)
    }

    /// Not inlined: the page here would make every fault's stack three pages larger, and a thread that
    /// serves itself does so on its own.
    #[inline(never)]
    fn copy_back(&self, frame: FrameNo, page: PageNo) -> bool {
        let mut data = [PageData::ZERO];
        let held = self.pool.claim_limbo(frame);
        self.mmu
            .with_frame(&held, &mut |bytes| data[0].0.copy_from_slice(&bytes.0));
        let copied = self.mmu.copy(&data, page, Tracking::Off).pages == 1;
        if copied {
            self.drop_frame(frame);
        }
        copied
    }

    /// The memory of an exclusive frame goes back to the machine; the charge is another page's now.
    fn drop_frame(&self, frame: FrameNo) {
        self.mmu.drop_frames(frame, 1);
        self.pool.moved_out(frame, 1);
    }

    /// An exclusive page is dropped. Its mirror has been told.
    pub(crate) fn drop_exclusive(&self, frame: FrameNo) {
        self.drop_frame(frame);
        self.pool.uncharge(1, self.stats());
        self.keep_no_more(1);
        self.stats().exclusive_ends.add(1);
    }

    /// Gives back what is exclusive to the mirror of `notifier`. What cannot be mapped now is given back
    /// by a touch.
    pub(super) fn end_exclusive_of(&self, notifier: &IntervalNotifier<'_, M>, pages: PageRange) {
        let number = notifier.interval.number;
        // A page in flight may be in the hands of who has called the notifier: a touch ends it.
        if in_notifier() {
            return;
        }
        let start = Instant::now();
        let owners = self.pool.exclusive_owners();
        for page in owners.filter(|page| pages.contains(*page)) {
            while start.elapsed() <= PATIENCE {
                match self.state(page) {
                    State::Exclusive { holder, .. } if holder == number => {
                        if let Some(_pass) = self.gate.enter_to_give_back(&self.mmu) {
                            self.end_exclusive(page);
                        }
                        self.rest_if_exclusive(page);
                    }
                    State::Migrating => self.entries.wait(page, &self.mmu),
                    _ => break,
                }
            }
        }
    }

    /// Lets a moment pass if `page` could not be mapped again.
    fn rest_if_exclusive(&self, page: PageNo) {
        if matches!(self.state(page), State::Exclusive { .. }) {
            self.nap();
        }
    }

    /// Ends what devices have alone of `pages`, whose intervals are active.
    ///
    /// What cannot be mapped again within a second has lost its mapping behind our back: then nobody
    /// can see it.
    pub(crate) fn end_exclusive_in(&self, pages: PageRange) {
        // Pairs with the one in `take_run`.
        fence(SeqCst);
        if self.kept() == 0 {
            return;
        }
        let start = Instant::now();
        let within = |page: &PageNo| pages.contains(*page);
        while self.pool.exclusive_owners().any(|page| within(&page)) && start.elapsed() <= PATIENCE
        {
            for page in self.pool.exclusive_owners().filter(within) {
                if let Some(_pass) = self.gate.enter(&self.mmu) {
                    self.end_exclusive(page);
                }
                self.rest_if_exclusive(page);
                self.entries.wait(page, &self.mmu);
            }
        }
    }

    /// Before a fork: devices lose what they have alone (R17), and have to look again at everything
    /// once the guard is dropped, which keeps them from looking until then. For the forking thread,
    /// before it closes the gate.
    pub fn begin_fork(&self) -> Invalidating {
        let forking = self.invalidating(self.range(), Event::Fork);
        self.end_exclusive_in(self.range());
        forking
    }

    /// The most pages that may be kept out of reclaim's reach, by pins and by devices: what is left of
    /// the budget has to turn over for the rest of the program.
    pub(crate) fn keep_limit(&self) -> usize {
        self.pool.budget() / 8 * 7
    }

    /// Pages that pins and devices keep out of reclaim's reach.
    pub(crate) fn kept(&self) -> usize {
        self.kept.load(Acquire)
    }

    /// Counts `pages` more of them, unless that would be too many.
    pub(crate) fn keep_some(&self, pages: usize) -> bool {
        let limit = self.keep_limit();
        let more = |kept| Some(kept + pages).filter(|kept| *kept <= limit);
        self.kept.fetch_update(AcqRel, Acquire, more).is_ok()
    }

    /// `pages` of them are kept no longer.
    pub(crate) fn keep_no_more(&self, pages: usize) {
        let was = self.kept.fetch_sub(pages, AcqRel);
        debug_assert!(was >= pages, "more is let go than was kept");
    }
}
