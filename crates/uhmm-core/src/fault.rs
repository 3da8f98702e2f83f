//! The resolver of CPU faults: brings a missing page back, whatever it was.
//!
//! Called by a fault engine, on an internal thread, with the page that a program touched. When
//! [`Space::fault`] returns, the faulting thread has been woken or will be by whoever has the page;
//! if the page is missing again by then, it simply faults again.
//!
//! The path allocates nothing, logs nothing, and waits for RAM, and for a moment where a driver holds the
//! page, with nothing claimed and outside the gate (R18).

use crate::addr::{DeviceAddr, Home, PageData, PageNo, PageRange};
use crate::around::MAX_WINDOW;
use crate::claims::{Run, Single};
use crate::device::CopyOutError;
use crate::entry::State;
use crate::events;
use crate::frames::Frame;
use crate::mirror::Event;
use crate::mmu::{Mmu, Progress, Stop, Tracking};
use crate::pagemap::Held;
use crate::space::Space;
use arrayvec::ArrayVec;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering::AcqRel};
use std::time::Duration;

/// What a thread did that met a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It read a missing page.
    Read,
    /// It wrote to a missing page.
    Write,
    /// It wrote to a present page whose writes are tracked: it has a duplicate on a device, or is a
    /// coherent page that is shared since a fork.
    Tracked,
}

/// Pages of a [`Scratch`].
pub const SCRATCH_PAGES: usize = MAX_WINDOW;

/// Memory for the copies of one thread that serves faults.
pub struct Scratch<'a> {
    pub(crate) pages: ScratchPages<'a>,
}

pub(crate) enum ScratchPages<'a> {
    Own(Box<[PageData]>),
    Lent(&'a mut [PageData; SCRATCH_PAGES]),
}

impl Default for Scratch<'_> {
    fn default() -> Self {
        let pages = vec![PageData::ZERO; SCRATCH_PAGES].into();
        Self {
            pages: ScratchPages::Own(pages),
        }
    }
}

impl<'a> Scratch<'a> {
    /// One in memory that the caller has already, for where the heap may not be used. Whatever the pages
    /// hold is overwritten.
    pub fn lent(pages: &'a mut [PageData; SCRATCH_PAGES]) -> Self {
        Self {
            pages: ScratchPages::Lent(pages),
        }
    }
}

impl Deref for ScratchPages<'_> {
    type Target = [PageData];

    fn deref(&self) -> &[PageData] {
        match self {
            Self::Own(pages) => pages,
            Self::Lent(pages) => &pages[..],
        }
    }
}

impl DerefMut for ScratchPages<'_> {
    fn deref_mut(&mut self) -> &mut [PageData] {
        match self {
            Self::Own(pages) => pages,
            Self::Lent(pages) => &mut pages[..],
        }
    }
}

pub(crate) static ZEROS: [PageData; MAX_WINDOW] = [PageData::ZERO; MAX_WINDOW];

/// How long a touch of a page rests that somebody else holds.
const HELD_PAUSE: Duration = Duration::from_micros(100);

/// What one look at the page came to.
pub(crate) enum Outcome {
    /// The faulting thread is, or will be, woken.
    Served,
    /// The page changed under the look.
    Again,
    /// There is no RAM for it now.
    NoRam,
    /// Somebody holds its device page (R7): the touch repeats, after a moment.
    Held,
    /// Something else is mapped there. Whoever waits was woken.
    Foreign,
}

/// Why the next page of a window was not copied from its device.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NotCopied {
    /// Somebody else holds it.
    Held,
    /// The device says so.
    Device(CopyOutError),
}

/// References on the device pages of a window, and where those are.
type HeldPages<'a, M> = ArrayVec<(Held<'a, <M as Mmu>::Table>, DeviceAddr), MAX_WINDOW>;

/// RAM for a page, to be used up or given back.
pub(crate) enum Ram {
    /// The budget allows this many new pages.
    Charged(usize),
    /// A frame from the pool.
    Warm(Frame),
}

impl<M: Mmu> Space<M> {
    /// Serves a fault on `page`. For internal threads; a thread that meets the fault itself uses
    /// [`Space::fault_here`].
    pub fn fault(&self, page: PageNo, access: Access, scratch: &mut Scratch) {
        self.serve(page, access, scratch);
    }

    /// Serves a fault on `page`. `false`: what is mapped there is not the space's.
    pub(crate) fn serve(&self, page: PageNo, access: Access, scratch: &mut Scratch) -> bool {
        if !self.range().contains(page) {
            return false;
        }
        let ours = loop {
            let Some(pass) = self.gate.enter(&self.mmu) else {
                if self.fault_while_closed(page, access, scratch) {
                    return true;
                }
                continue;
            };
            let outcome = self.fault_once(page, access, scratch);
            drop(pass);
            match outcome {
                Outcome::Served => break true,
                Outcome::Foreign => break false,
                Outcome::Again => {}
                Outcome::NoRam => self.wait_for_ram(),
                Outcome::Held => {
                    // Nobody tells when it is let go; this keeps the touch from turning in a circle.
                    self.mmu.wait(&AtomicU64::new(0), 0, HELD_PAUSE);
                    self.mmu.wake(PageRange::new(page, 1));
                    break true;
                }
            }
        };
        self.relieve();
        ours
    }

    /// One attempt to serve a fault, inside the gate.
    pub(crate) fn fault_once(
        &self,
        page: PageNo,
        access: Access,
        scratch: &mut Scratch,
    ) -> Outcome {
        self.unmap_ahead();
        self.look(page, access, scratch)
    }

    pub(crate) fn look(&self, page: PageNo, access: Access, scratch: &mut Scratch) -> Outcome {
        let seen = self.entries.load(page);
        match seen.state() {
            State::Migrating if self.entries.want(page, seen) => Outcome::Served,
            State::Migrating => Outcome::Again,
            State::System { .. } if access == Access::Tracked => self.untrack(page),
            State::Coherent(_) if access == Access::Tracked && seen.is_shared() => {
                self.copy_on_write(page, scratch)
            }
            // The page went after the write was stopped: the touch repeats, and finds it missing.
            _ if access == Access::Tracked => self.served(page),
            State::Poisoned => {
                self.mmu.poison(page);
                self.served(page)
            }
            State::System { .. } | State::Coherent(_) => self.look_again(page),
            State::None | State::Private(_) => self.bring_in(page, access, scratch),
            State::Limbo(_) => self.bring_back(page, scratch),
            State::Exclusive { .. } => self.end_exclusive(page),
        }
    }

    pub(crate) fn served(&self, page: PageNo) -> Outcome {
        self.mmu.wake(PageRange::new(page, 1));
        Outcome::Served
    }

    /// A fault on a page that should be mapped: another thread's fault was served first, or the page
    /// was dropped behind our back (a raw `madvise`), and then it reads as zero.
    fn look_again(&self, page: PageNo) -> Outcome {
        let Some(claimed) = Single::claim_in_place(self, page, State::is_mapped) else {
            return Outcome::Again;
        };
        self.stats().stale_faults.add(1);
        let dropped = self.mmu.copy(&ZEROS[..1], page, Tracking::Off).pages == 1;
        // Either way the page is mapped now, or the touch repeats.
        let was = claimed.was();
        if dropped && let Some(at) = was.device_page() {
            // Devices may have the page that is freed now.
            self.notify(PageRange::new(page, 1), Event::Clear);
            claimed.settle(State::system(true));
            match was {
                // The frame of an arena was never charged, and is gone.
                State::Coherent(_) => {
                    self.pool.charge_existing(1, self.stats());
                    self.put_page(at);
                }
                _ => self.drop_duplicate(at),
            }
        }
        self.served(page)
    }

    /// A write to a page of which a device has the bytes: from now on it has not.
    fn untrack(&self, page: PageNo) -> Outcome {
        let is_system = |state| matches!(state, State::System { .. });
        let Some(claimed) = Single::claim_in_place(self, page, is_system) else {
            return Outcome::Again;
        };
        self.give_duplicate_up(claimed);
        Outcome::Served
    }

    /// Ends the tracking of a page in RAM, which is nowhere else from now on.
    pub(crate) fn give_duplicate_up(&self, claimed: Single<'_, M>) {
        let duplicate = claimed.was().device_page();
        self.mmu.untrack(claimed.page());
        claimed.settle(State::system(true));
        if let Some(at) = duplicate {
            self.drop_duplicate(at);
        }
    }

    /// Frees a device page that was the duplicate of a page in RAM. For internal threads.
    pub(crate) fn drop_duplicate(&self, at: DeviceAddr) {
        self.count_duplicates(-1);
        self.put_page(at);
    }

    /// `more` pages in RAM have a duplicate on a device.
    pub(crate) fn count_duplicates(&self, more: isize) {
        self.duplicates.fetch_add(more as usize, AcqRel);
        self.stats().duplicate_pages.add(more as u64);
    }

    /// Whether a device page may be the duplicate of a page in RAM, which is forgotten when RAM is short:
    /// not one of a device that has failed, or that pages are to leave.
    pub(crate) fn keeps(&self, at: DeviceAddr) -> bool {
        self.device(at.device).keeps(at.page)
    }

    /// From nowhere (zeros) or from a device, to new memory or to a warm frame.
    pub(crate) fn bring_in(&self, page: PageNo, access: Access, scratch: &mut Scratch) -> Outcome {
        let seen = self.state(page);
        let fresh = seen == State::None;
        let kept = |page, state: State| {
            let at = state.device_page();
            self.hints.of(page).read_mostly && at.is_some_and(|at| self.keeps(at))
        };
        let keep = access == Access::Read && kept(page, seen);
        let same = |i, state| match state {
            State::None => fresh,
            State::Private(_) => {
                !fresh && (access != Access::Read || kept(page.plus(i), state) == keep)
            }
            _ => false,
        };
        let mut run = Run::collect(self, page, self.around.window(page), same);
        if run.pages().len == 0 {
            return Outcome::Again;
        }
        let Some(ram) = self.ram_for(run.pages().len) else {
            return Outcome::NoRam;
        };
        let ram = match ram {
            // A warm frame would be moved in, and the writes to what is moved are not tracked.
            Ram::Warm(frame) if keep => self.make_new(frame),
            ram => ram,
        };
        run.truncate(match ram {
            Ram::Charged(pages) => pages,
            Ram::Warm(_) => 1,
        });
        if !fresh {
            // The device whose pages these are may have mapped them for itself.
            self.notify(run.pages(), Event::Migrate);
        }
        let mut held = HeldPages::<M>::new();
        match self.copy_out(&run, &mut held, scratch) {
            Ok(()) => {}
            Err((0, error)) => {
                self.give_back(ram);
                return match error {
                    NotCopied::Device(CopyOutError::Lost) => self.lost(run),
                    // The touch repeats.
                    NotCopied::Device(CopyOutError::Retry) => {
                        drop(run);
                        self.served(page)
                    }
                    NotCopied::Held => Outcome::Held,
                };
            }
            Err((copied, _)) => run.truncate(copied),
        }
        let from = if fresh {
            &ZEROS[..]
        } else {
            &scratch.pages[..]
        };
        let tracking = if keep {
            Tracking::Writes
        } else {
            Tracking::Off
        };
        let (progress, unused) = self.install(&from[..run.pages().len], page, ram, tracking);
        if let Some(ram) = unused {
            self.give_back(ram);
        }
        // A page that is there although its entry says otherwise was mapped behind our back; what
        // the program sees is what counts.
        let present = progress.pages == 0 && progress.stop == Some(Stop::Present);
        let installed = if present {
            self.pool.charge_existing(1, self.stats());
            1
        } else {
            progress.pages
        };
        let keep = keep && !present;
        if keep {
            // Before a write can end them.
            self.count_duplicates(installed as isize);
        }
        run.settle(installed, |i| State::System {
            referenced: i == 0 && !fresh,
            duplicate: held.get(i).filter(|_| keep).map(|(_, at)| *at),
        });
        drop(run);
        for (i, (reference, at)) in held.into_iter().enumerate() {
            let stats = self.device_stats(at.device);
            if i < installed && !keep {
                reference.leave(stats);
            } else {
                // A duplicate that is read is worth its place.
                self.device(at.device).set_used(at.page);
                reference.end(stats);
            }
        }
        self.around.brought(page, installed.max(1));
        if fresh {
            self.stats().first_touch_faults.add(1);
        } else {
            self.stats().device_faults.add(1);
            self.stats().pages_to_system.add(installed as u64);
        }
        self.after(page, progress)
    }

    /// Copies the bytes of the run's device pages to `scratch`, in order, and takes a reference on
    /// each before that, to be kept until the page is installed (R3). On an error: how many are
    /// copied, and what is wrong with the next. A first page that is lost is off the device then.
    fn copy_out<'a>(
        &'a self,
        run: &Run<'_, M>,
        held: &mut HeldPages<'a, M>,
        scratch: &mut Scratch,
    ) -> Result<(), (usize, NotCopied)> {
        let mut pages = ArrayVec::<DeviceAddr, MAX_WINDOW>::new();
        let mut stop = None;
        for i in 0..run.pages().len {
            let State::Private(at) = run.was(i) else {
                return Ok(());
            };
            let reference = self.device(at.device).get(at.page);
            let reference = reference.expect("an entry names a device page that is in use (R1)");
            // The entry's reference and ours; another holder may be writing to the page (R7).
            if reference.count() > 2 {
                reference.end(self.device_stats(at.device));
                stop = Some((i, NotCopied::Held));
                break;
            }
            held.push((reference, at));
            pages.push(at);
        }
        let mut copied = 0;
        for same in pages.chunk_by(|a, b| a.device == b.device) {
            let to = &mut scratch.pages[copied..copied + same.len()];
            for result in self.load_batch(same, to) {
                if let Err(error) = result {
                    stop = Some((copied, NotCopied::Device(error)));
                    break;
                }
                copied += 1;
            }
            if copied < pages.len() && stop.is_some_and(|(at, _)| at == copied) {
                break;
            }
        }
        let lost = stop == Some((0, NotCopied::Device(CopyOutError::Lost)));
        for (reference, at) in held.drain(copied..) {
            let stats = self.device_stats(at.device);
            if lost && pages.first() == Some(&at) {
                reference.leave(stats);
            } else {
                reference.end(stats);
            }
        }
        stop.map_or(Ok(()), Err)
    }

    /// RAM for up to `pages` pages, or for one, or `None`.
    ///
    /// New memory comes first: a copy into it interrupts no other CPU, while moving a warm frame in
    /// does, to flush the pool's address from its TLB, and costs several times as much as soon as a
    /// second thread runs.
    pub(crate) fn ram_for(&self, pages: usize) -> Option<Ram> {
        let charge = |pages| {
            self.pool
                .try_charge(pages, self.stats())
                .then_some(Ram::Charged(pages))
        };
        let plenty = pages > 1 && self.pool.available() > self.reclaim.pressure.low + pages;
        let several = if plenty { charge(pages) } else { None };
        several
            .or_else(|| charge(1))
            .or_else(|| self.pool.take_free().map(Ram::Warm))
    }

    /// Gives a warm frame up for new memory in its stead.
    fn make_new(&self, frame: Frame) -> Ram {
        self.mmu.drop_frames(frame.slot(), 1);
        self.pool.moved_out(frame.slot(), 1);
        Ram::Charged(1)
    }

    pub(crate) fn give_back(&self, ram: Ram) {
        match ram {
            Ram::Charged(pages) => self.pool.uncharge(pages, self.stats()),
            Ram::Warm(frame) => self.pool.put_free(frame),
        }
    }

    /// Maps copies of `from` at `page`; returns what of `ram` was not used.
    pub(crate) fn install(
        &self,
        from: &[PageData],
        page: PageNo,
        ram: Ram,
        tracking: Tracking,
    ) -> (Progress, Option<Ram>) {
        match ram {
            Ram::Charged(charged) => {
                let progress = self.mmu.copy(from, page, tracking);
                let unused = charged - progress.pages;
                (progress, (unused > 0).then_some(Ram::Charged(unused)))
            }
            Ram::Warm(frame) => {
                self.mmu
                    .with_frame(&frame, &mut |data| data.0.copy_from_slice(&from[0].0));
                let progress = self
                    .mmu
                    .put(Home::Pool(frame.slot()), PageRange::new(page, 1));
                match progress {
                    Progress { pages: 1, .. } => {
                        self.pool.moved_out(frame.slot(), 1);
                        (progress, None)
                    }
                    // Only the copy can serve a range that is not writable: it takes new memory in
                    // the frame's stead.
                    Progress {
                        stop: Some(Stop::Protected),
                        ..
                    } => self.install(from, page, self.make_new(frame), tracking),
                    _ => (progress, Some(Ram::Warm(frame))),
                }
            }
        }
    }

    /// The device has lost the first page of `run` (R9).
    fn lost(&self, mut run: Run<'_, M>) -> Outcome {
        let page = run.pages().start;
        self.mmu.poison(page);
        run.settle(1, |_| State::Poisoned);
        drop(run);
        self.stats().poisoned_pages.add(1);
        let address = page.address();
        self.events.tell(events::Event::PagePoisoned { address });
        self.served(page)
    }

    /// Out of limbo: the frames go straight back, with no copy.
    fn bring_back(&self, page: PageNo, scratch: &mut Scratch) -> Outcome {
        let State::Limbo(first) = self.state(page) else {
            return Outcome::Again;
        };
        let in_line = |i, state| state == State::Limbo(first.plus(i));
        let mut run = Run::collect(self, page, self.around.window(page), in_line);
        if run.pages().len == 0 {
            return Outcome::Again;
        }
        let progress = self.mmu.put(Home::Pool(first), run.pages());
        self.pool.moved_out(first, progress.pages);
        run.settle(progress.pages, |_| State::system(true));
        self.stats().limbo_faults.add(1);
        self.around.brought(page, progress.pages.max(1));
        if progress.pages > 0 {
            return Outcome::Served;
        }
        match progress.stop {
            // The frame cannot move into a range that is not writable, but its bytes can. For that
            // moment the page exists twice.
            Some(Stop::Protected) => {
                let frame = self.pool.claim_limbo(first);
                let to = &mut scratch.pages[0];
                self.mmu
                    .with_frame(&frame, &mut |data| to.0.copy_from_slice(&data.0));
                let progress = self.mmu.copy(&scratch.pages[..1], page, Tracking::Off);
                if progress.pages == 1 {
                    self.pool.charge_existing(1, self.stats());
                    run.settle(1, |_| State::system(true));
                    self.pool.put_free(frame);
                }
                drop(run);
                self.after(page, progress)
            }
            _ => {
                drop(run);
                self.after(page, progress)
            }
        }
    }

    /// The end of a fault whose pages have been settled.
    fn after(&self, page: PageNo, progress: Progress) -> Outcome {
        match progress {
            Progress {
                pages: 0,
                stop: Some(Stop::NoMemory),
            } => Outcome::NoRam,
            // The copy or the move woke whoever waits.
            Progress { pages, .. } if pages > 0 => Outcome::Served,
            Progress {
                stop: Some(Stop::Unmapped),
                ..
            } => {
                self.mmu.wake(PageRange::new(page, 1));
                Outcome::Foreign
            }
            // The touch repeats, and finds the page, or an end to the change, or no mapping.
            _ => self.served(page),
        }
    }
}
