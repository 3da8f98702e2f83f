//! Fork: both sides see the memory of that moment, whatever state each page was in (R16).
//!
//! The kernel copies the program's mapped pages, the frame pool and the core's own memory, in-memory
//! devices included, all copy-on-write. What it does not copy are the threads, and the registration
//! of the mappings. So:
//!
//! 1. *prepare* (before the C library takes its own locks for the fork): [`Space::close_for_fork`]
//!    closes the gate and waits until nothing is in flight.
//! 2. While the gate is closed, faults are still served, since the forking thread may have to wait
//!    for a lock whose holder faults. They are served without changing anything that the child
//!    gets a copy of: the page's bytes are copied into place, and the page is put on the *log*, in
//!    this order: log, then copy. The entry, the frame and the device page stay as they are.
//!    A write to a tracked page is let through, and logged, if it is in RAM. If it is coherent, it gets a
//!    copy in RAM now: all coherent pages are shared from the moment the gate is closed (`cow.rs`).
//! 3. fork. Just before it, [`Space::seal_for_fork`] makes faults wait for its end, so that no
//!    handler is at work in a device at the moment of the copy: its lock would be held for ever in
//!    the child. The wait is bounded by `SEAL`, for the sake of point 2.
//! 4. On each side the log is applied: a page on it that is really mapped is System now, and its
//!    device page or frame is released. In the parent every page on the log is mapped. In the
//!    child one is mapped just if its copy came before the fork; and then the log, written before
//!    it, names it.
//! 5. The gate opens. In the child, what is mapped, though no entry says so and the log neither, was touched
//!    before the child's memory was registered again: the kernel gave it a zero page that shadows
//!    what is on the device. It is dropped, and the next touch brings the right bytes.
//!
//! Where the bound of the seal was reached, the child takes the locks of this crate over (a handler
//! only reads under them): see [`crate::lock`].

use crate::addr::{DeviceAddr, PAGE_SHIFT, PageData, PageNo, PageRange};
use crate::claims::Single;
use crate::entry::State;
use crate::events::Event;
use crate::fault::{Access, Scratch, ZEROS};
use crate::lock::Lock;
use crate::mmu::{Mmu, Tracking};
use crate::space::Space;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::time::Duration;

/// The most faults that are served while the gate is closed: 32 MiB beside the budget.
const LOG: usize = 8192;

/// How long a fault waits for a fork that is about to happen. Longer than most forks take.
const SEAL: Duration = Duration::from_millis(100);

/// How long a fault that cannot be served now waits for the gate before it is tried again.
const PAUSE: Duration = Duration::from_millis(1);

/// Where a page comes from that is served while the gate is closed.
enum From {
    /// It is there, and only its tracking ends.
    Untracked,
    /// It is there, and shared.
    Shared(DeviceAddr),
    Zeros,
    Scratch,
}

pub(crate) struct ForkLog {
    pages: Box<[AtomicU64]>,
    len: AtomicUsize,
    /// Held by the handler that serves a fault while the gate is closed.
    serving: Lock<()>,
    /// Faults wait for the end of the fork.
    sealed: AtomicBool,
}

impl Default for ForkLog {
    fn default() -> Self {
        Self {
            pages: (0..LOG).map(|_| AtomicU64::new(0)).collect(),
            len: AtomicUsize::new(0),
            serving: Lock::new(()),
            sealed: AtomicBool::new(false),
        }
    }
}

impl ForkLog {
    fn iter(&self) -> impl Iterator<Item = PageNo> {
        let len = self.len.load(Acquire);
        self.pages[..len]
            .iter()
            .map(|page| PageNo(page.load(Acquire)))
    }
}

impl<M: Mmu> Space<M> {
    /// Closes the gate for a fork, and waits until nothing is in flight. The caller opens it again
    /// with [`Space::open_in_parent`] or [`Space::open_in_child`].
    pub fn close_for_fork(&self) {
        // The log is empty from the fork before, and faults may be on it before this returns.
        self.gate.close(&self.mmu);
        self.share_coherent();
    }

    /// The fork comes next: faults wait for its end. What the forking thread will touch from now
    /// on should be mapped.
    pub fn seal_for_fork(&self) {
        let _nobody_serves = self.fork_log.serving.lock();
        self.fork_log.sealed.store(true, Release);
    }

    /// Serves a fault while the gate is closed. `false`: look at the gate again.
    pub(crate) fn fault_while_closed(
        &self,
        page: PageNo,
        access: Access,
        scratch: &mut Scratch,
    ) -> bool {
        if self.fork_log.sealed.load(Acquire) {
            if self.gate.wait_open(&self.mmu, SEAL) {
                return false;
            }
            // The forking thread waits for something, perhaps for whoever faults here.
            self.fork_log.sealed.store(false, Release);
        }
        let serving = self.fork_log.serving.lock();
        if !self.gate.is_drained() || self.fork_log.sealed.load(Acquire) {
            drop(serving);
            std::thread::yield_now();
            return false;
        }
        let seen = self.entries.load(page);
        let one = PageRange::new(page, 1);
        let from = match seen.state() {
            // Nothing is copied: the page is there.
            State::System { .. } if access == Access::Tracked => From::Untracked,
            State::Coherent(at) if access == Access::Tracked && seen.is_shared() => {
                if self.fork_log.iter().any(|logged| logged == page) {
                    // Another thread's write came first: it is in RAM. (It may have been tracked once more,
                    // by a forking thread that was at it just then.)
                    self.mmu.untrack(page);
                    return true;
                }
                if self.is_held_too(at) {
                    // It stays where it is. If a copy is made of it after the fork, it is the kernel's.
                    self.mmu.untrack(page);
                    return true;
                }
                if !self.is_present(page) {
                    // Dropped behind our back: the touch repeats, and finds it missing.
                    self.mmu.wake(one);
                    return true;
                }
                From::Shared(at)
            }
            // It went after the write was stopped: the touch repeats, and finds it missing.
            _ if access == Access::Tracked => {
                self.mmu.wake(one);
                return true;
            }
            State::None | State::System { .. } | State::Coherent(_) => From::Zeros,
            State::Private(at) => {
                if self.load(at, &mut scratch.pages[0]).is_err() {
                    // Poisoning is for the open gate.
                    drop(serving);
                    return self.try_again_soon(page);
                }
                From::Scratch
            }
            State::Limbo(slot) | State::Exclusive { frame: slot, .. } => {
                let frame = self.pool.claim_limbo(slot);
                let to = &mut scratch.pages[0];
                self.mmu
                    .with_frame(&frame, &mut |data| to.0.copy_from_slice(&data.0));
                From::Scratch
            }
            // Not while nobody is inside; if it were, this would be the way.
            State::Migrating => return false,
            State::Poisoned => {
                self.mmu.wake(one);
                return true;
            }
        };
        let next = self.fork_log.len.load(Acquire);
        if next == LOG {
            drop(serving);
            return self.try_again_soon(page);
        }
        self.fork_log.pages[next].store(page.0, Release);
        self.fork_log.len.store(next + 1, Release);
        let copy = |from| self.mmu.copy(from, page, Tracking::Off).pages == 1;
        let served = match from {
            From::Untracked => {
                self.mmu.untrack(page);
                true
            }
            From::Shared(at) => {
                let copied = self.copy_while_closed(page, at, &mut scratch.pages[0]);
                if !copied {
                    self.fork_log.len.store(next, Release);
                    drop(serving);
                    return self.try_again_soon(page);
                }
                true
            }
            From::Zeros => copy(&ZEROS[..1]),
            From::Scratch => copy(&scratch.pages[..1]),
        };
        if !served {
            // Present: it was served, and logged, before. Anything else: the touch repeats.
            self.fork_log.len.store(next, Release);
            self.mmu.wake(one);
        }
        true
    }

    /// A write to a coherent page while the gate is closed: a copy in RAM takes its place, as after the fork.
    /// `false`: the machine has no memory now.
    fn copy_while_closed(&self, page: PageNo, at: DeviceAddr, scratch: &mut PageData) -> bool {
        if !self.copy_home(page, at) {
            return false;
        }
        // The bytes are at home: where the fork comes now, the child finds them there.
        while self.load(at, scratch).is_err() {
            self.nap();
        }
        self.map_bytes(page, scratch);
        true
    }

    /// The fault on `page` cannot be served now. The touch repeats after a while: a handler must not wait
    /// here, since the fork may wait for a fault that comes after this one.
    fn try_again_soon(&self, page: PageNo) -> bool {
        self.gate.wait_open(&self.mmu, PAUSE);
        self.mmu.wake(PageRange::new(page, 1));
        true
    }

    /// Ends a fork in the parent, whether there is a child or not.
    pub fn open_in_parent(&self) {
        let serving = self.fork_log.serving.lock();
        for page in self.fork_log.iter() {
            self.apply(page);
        }
        self.end_log();
        self.gate.open(&self.mmu);
        drop(serving);
        self.relieve();
        self.events.tell(Event::Forked);
    }

    /// Begins in the child of a fork, before it has a second thread.
    pub fn begin_in_child(&self) {
        self.gate.forget_threads();
        self.events.begin_in_child();
        self.forget_ram_waiters();
        self.fork_log.sealed.store(false, Release);
    }

    /// Ends a fork in the child, whose MMU has been set up anew, and where nothing but the engine's
    /// threads runs beside the caller.
    /// `managed` is what of the space is ours: what others have mapped over the rest is theirs.
    pub fn open_in_child(&self, managed: &[PageRange]) {
        let serving = self.fork_log.serving.lock();
        for &managed in managed {
            self.mmu.present(managed, &mut |mapped| {
                for page in mapped.iter() {
                    let state = self.state(page);
                    if matches!(state, State::System { .. }) {
                        continue;
                    }
                    if self.fork_log.iter().any(|logged| logged == page) {
                        self.apply(page);
                    } else if !state.is_mapped() {
                        self.mmu.discard(PageRange::new(page, 1));
                    }
                }
            });
        }
        for page in self.fork_log.iter() {
            self.find_at_home(page);
        }
        self.forget_duplicates();
        self.forget_pins();
        self.share_coherent();
        self.notifiers.forget();
        self.end_log();
        self.set_gauges();
        self.gate.open(&self.mmu);
        drop(serving);
        self.relieve();
        self.events.tell(Event::ForkedHere);
    }

    /// In the child, where nobody was told of writes until now: what a device has of pages in RAM may
    /// be out of date.
    fn forget_duplicates(&self) {
        if self.duplicates.load(Acquire) == 0 {
            return;
        }
        self.entries.for_each_used(self.range(), |page, word| {
            if let State::System {
                duplicate: Some(_), ..
            } = word.state()
                && let Some(claimed) = Single::claim_in_place(self, page, |_| true)
            {
                self.bury_duplicate(claimed);
            }
        });
    }

    fn end_log(&self) {
        self.fork_log.len.store(0, Release);
        self.fork_log.sealed.store(false, Release);
    }

    /// The child's counters begin at zero, but it has inherited memory.
    fn set_gauges(&self) {
        let stats = self.stats();
        stats
            .ram_budget_bytes
            .set((self.pool.budget() << PAGE_SHIFT) as u64);
        self.pool.uncharge(0, stats);
        stats
            .duplicate_pages
            .set(self.duplicates.load(Acquire) as u64);
        stats.pinned_pages.set(0);
        stats.pins_released.set(stats.pins_acquired.get());
        stats.page_puts.set(stats.page_gets.get());
        for (i, device) in self.devices() {
            let held = self.device_stats(i);
            held.pages.set(device.in_use() as u64);
            held.pages_peak.raise(held.pages.get());
            device.count_stored(held);
        }
    }

    /// A page on the log is mapped, in RAM, and nowhere else.
    fn apply(&self, page: PageNo) {
        let Some(claimed) = Single::claim_in_place(self, page, |state| state != State::Poisoned)
        else {
            return;
        };
        let was = claimed.was();
        if matches!(was, State::System { .. }) {
            self.bury_duplicate(claimed);
            return;
        }
        self.pool.charge_existing(1, self.stats());
        if matches!(was, State::Coherent(_)) {
            self.mmu.untrack(page);
        }
        claimed.settle(State::system(true));
        match was {
            State::Private(at) | State::Coherent(at) => self.device(at.device).bury(at.page),
            State::Limbo(slot) => self.pool.put_free(self.pool.claim_limbo(slot)),
            State::Exclusive { frame, .. } => self.drop_exclusive(frame),
            _ => {}
        }
    }

    /// In the child: a page on the log whose bytes had just gone home when the process was copied.
    fn find_at_home(&self, page: PageNo) {
        if !self.is_present(page)
            && let Some(claimed) = Single::claim_shared(self, page)
            && let State::Coherent(at) = claimed.was()
        {
            claimed.settle(State::Private(at));
        }
    }

    /// A page in RAM is nowhere else from now on. For application threads.
    pub(crate) fn bury_duplicate(&self, claimed: Single<'_, M>) {
        if let Some(at) = claimed.was().device_page() {
            self.mmu.untrack(claimed.page());
            claimed.settle(State::system(true));
            self.count_duplicates(-1);
            self.device(at.device).bury(at.page);
        }
    }
}
