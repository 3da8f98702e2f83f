//! The resolver of CPU faults: brings a missing page back, whatever it was.
//!
//! Called by a fault engine, on an internal thread, with the page that a program touched. When
//! [`Space::fault`] returns, the faulting thread has been woken or will be by whoever has the page;
//! if the page is missing again by then, it simply faults again.
//!
//! The path allocates nothing, logs nothing, and waits in one place only, for RAM, with nothing
//! claimed and outside the gate (R18).

use crate::addr::{PageData, PageNo, PageRange};
use crate::around::MAX_WINDOW;
use crate::device::CopyOutError;
use crate::entry::{DeviceAddr, State};
use crate::frames::Frame;
use crate::migrate::Run;
use crate::mmu::{Mmu, Progress, Stop};
use crate::pagemap::Held;
use crate::space::Space;

/// Memory for the copies of one thread that serves faults.
pub struct Scratch {
    pub(crate) pages: Box<[PageData]>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            pages: vec![PageData::ZERO; MAX_WINDOW].into(),
        }
    }
}

pub(crate) static ZEROS: [PageData; MAX_WINDOW] = [PageData::ZERO; MAX_WINDOW];

/// How often a device is asked again before the fault itself is tried again.
const COPY_TRIES: usize = 4;

/// What one look at the page came to.
enum Outcome {
    /// The faulting thread is, or will be, woken.
    Served,
    /// The page changed under the look.
    Again,
    /// There is no RAM for it now.
    NoRam,
}

/// A reference on a device page, and where that is.
type OnDevice<'a, M> = (Held<'a, <M as Mmu>::Table>, DeviceAddr);

/// RAM for a page, to be used up or given back.
enum Ram {
    /// The budget allows this many new pages.
    Charged(usize),
    /// A frame from the pool.
    Warm(Frame),
}

impl<M: Mmu> Space<M> {
    /// Serves a fault on `page`. For internal threads.
    pub fn fault(&self, page: PageNo, scratch: &mut Scratch) {
        if !self.range().contains(page) {
            return;
        }
        loop {
            let Some(pass) = self.gate.enter(&self.mmu) else {
                if self.fault_while_closed(page, scratch) {
                    return;
                }
                continue;
            };
            self.unmap_ahead();
            let outcome = self.look(page, scratch);
            drop(pass);
            match outcome {
                Outcome::Served => break,
                Outcome::Again => {}
                Outcome::NoRam => self.wait_for_ram(),
            }
        }
        self.relieve();
    }

    fn look(&self, page: PageNo, scratch: &mut Scratch) -> Outcome {
        let seen = self.entries.load(page);
        match seen.state() {
            State::Migrating if self.entries.want(page, seen) => Outcome::Served,
            State::Migrating => Outcome::Again,
            State::Poisoned => {
                self.mmu.poison(page);
                self.served(page)
            }
            State::System { .. } => self.look_again(page),
            State::None | State::Private(_) => self.bring_in(page, scratch),
            State::Limbo(_) => self.bring_back(page, scratch),
        }
    }

    fn served(&self, page: PageNo) -> Outcome {
        self.mmu.wake(PageRange::new(page, 1));
        Outcome::Served
    }

    /// A fault on a page that should be mapped: another thread's fault was served first, or the page
    /// was dropped behind our back (a raw `madvise`), and then it reads as zero.
    fn look_again(&self, page: PageNo) -> Outcome {
        let is_system = |_, state| matches!(state, State::System { .. });
        let run = Run::collect(self, page, 1, is_system);
        if run.pages().len == 0 {
            return Outcome::Again;
        }
        self.stats().stale_faults.add(1);
        // The outcome makes no difference: either way the page is mapped now, or the touch repeats.
        let _ = self.mmu.copy(&ZEROS[..1], page);
        drop(run);
        self.served(page)
    }

    /// From nowhere (zeros) or from a device, to new memory or to a warm frame.
    fn bring_in(&self, page: PageNo, scratch: &mut Scratch) -> Outcome {
        let fresh = self.state(page) == State::None;
        let same = |_, state| match state {
            State::None => fresh,
            State::Private(_) => !fresh,
            _ => false,
        };
        let mut run = Run::collect(self, page, self.around.window(page), same);
        if run.pages().len == 0 {
            return Outcome::Again;
        }
        let Some(ram) = self.ram_for(run.pages().len) else {
            return Outcome::NoRam;
        };
        run.truncate(if let Ram::Charged(pages) = ram {
            pages
        } else {
            1
        });
        let mut held = [const { None }; MAX_WINDOW];
        match self.copy_out(&run, &mut held, scratch) {
            Ok(()) => {}
            Err((0, error)) => {
                self.give_back(ram);
                return if error == CopyOutError::Lost {
                    self.lost(run)
                } else {
                    // The touch repeats.
                    drop(run);
                    self.served(page)
                };
            }
            Err((copied, _)) => run.truncate(copied),
        }
        let from = if fresh {
            &ZEROS[..]
        } else {
            &scratch.pages[..]
        };
        let (progress, unused) = self.install(&from[..run.pages().len], page, ram);
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
        run.settle(installed, |i| State::System {
            referenced: i == 0 && !fresh,
        });
        drop(run);
        for (i, slot) in held.iter_mut().enumerate() {
            match slot.take() {
                Some((reference, at)) if i < installed => {
                    reference.leave(self.device_stats(at.device));
                }
                Some((reference, at)) => reference.end(self.device_stats(at.device)),
                None => {}
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
        held: &mut [Option<OnDevice<'a, M>>],
        scratch: &mut Scratch,
    ) -> Result<(), (usize, CopyOutError)> {
        for (i, slot) in held.iter_mut().enumerate().take(run.pages().len) {
            let State::Private(at) = run.was(i) else {
                continue;
            };
            let device = &self.devices[usize::from(at.device)];
            let reference = device
                .get(at.page)
                .expect("an entry names a device page that is in use (R1)");
            // The entry's reference and ours; another holder may be writing to the page (R7).
            let copied = if reference.count() > 2 {
                Err(CopyOutError::Retry)
            } else {
                retried(|| device.load(&reference, &mut scratch.pages[i]))
            };
            if let Err(error) = copied {
                let stats = self.device_stats(at.device);
                if i == 0 && error == CopyOutError::Lost {
                    reference.leave(stats);
                } else {
                    reference.end(stats);
                }
                return Err((i, error));
            }
            *slot = Some((reference, at));
        }
        Ok(())
    }

    /// RAM for up to `pages` pages, or for one, or `None`.
    ///
    /// New memory comes first: a copy into it interrupts no other CPU, while moving a warm frame in
    /// does, to flush the pool's address from its TLB, and costs several times as much as soon as a
    /// second thread runs.
    fn ram_for(&self, pages: usize) -> Option<Ram> {
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

    fn give_back(&self, ram: Ram) {
        match ram {
            Ram::Charged(pages) => self.pool.uncharge(pages, self.stats()),
            Ram::Warm(frame) => self.pool.put_free(frame),
        }
    }

    /// Maps copies of `from` at `page`; returns what of `ram` was not used.
    fn install(&self, from: &[PageData], page: PageNo, ram: Ram) -> (Progress, Option<Ram>) {
        match ram {
            Ram::Charged(charged) => {
                let progress = self.mmu.copy(from, page);
                let unused = charged - progress.pages;
                (progress, (unused > 0).then_some(Ram::Charged(unused)))
            }
            Ram::Warm(frame) => {
                self.mmu
                    .with_frame(&frame, &mut |data| data.0.copy_from_slice(&from[0].0));
                let progress = self.mmu.put(frame.slot(), PageRange::new(page, 1));
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
                    } => {
                        self.mmu.drop_frames(frame.slot(), 1);
                        self.pool.moved_out(frame.slot(), 1);
                        self.install(from, page, Ram::Charged(1))
                    }
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
        let progress = self.mmu.put(first, run.pages());
        self.pool.moved_out(first, progress.pages);
        run.settle(progress.pages, |_| State::System { referenced: true });
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
                let progress = self.mmu.copy(&scratch.pages[..1], page);
                if progress.pages == 1 {
                    self.pool.charge_existing(1, self.stats());
                    run.settle(1, |_| State::System { referenced: true });
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
            // The touch repeats, and finds the page, or an end to the change, or no mapping.
            _ => self.served(page),
        }
    }
}

fn retried(mut load: impl FnMut() -> Result<(), CopyOutError>) -> Result<(), CopyOutError> {
    for _ in 1..COPY_TRIES {
        match load() {
            Err(CopyOutError::Retry) => {}
            end => return end,
        }
    }
    load()
}
