//! A space on the simulated MMU with one watched device, and a program that touches it.

use crate::hook::HookedMmu;
use std::io::Write;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::yield_now;
use uhmm_core::Space;
use uhmm_core::addr::{DevicePage, PageData, PageNo, PageRange};
use uhmm_core::device::{CopyInError, CopyOutError, Device, DeviceInfo};
use uhmm_core::entry::State;
use uhmm_core::fault::{Access, Scratch};
use uhmm_mirror::MirrorDevice;
use uhmm_sim::{Fault, SimMmu};
pub use uhmm_testkit::Shared;
use uhmm_testkit::{FlakyDevice, Oracle};

pub type SimSpace = Space<HookedMmu>;
pub type Watched = Arc<FlakyDevice<Unhurried>>;

/// Pages of RAM: the fewest that a space can have.
pub const BUDGET: usize = uhmm_core::MIN_BUDGET_PAGES;
pub const BASE: PageNo = PageNo(1 << 20);

/// A device that lets others run in the middle of each call, so that calls that must not overlap
/// will, if nothing keeps them apart.
pub struct Unhurried(MirrorDevice);

impl Device for Unhurried {
    fn info(&self) -> DeviceInfo {
        self.0.info()
    }

    fn copy_in(&self, page: DevicePage, from: &PageData) -> Result<(), CopyInError> {
        yield_now();
        self.0.copy_in(page, from)
    }

    fn copy_out(&self, page: DevicePage, to: &mut PageData) -> Result<(), CopyOutError> {
        yield_now();
        self.0.copy_out(page, to)
    }

    fn free(&self, page: DevicePage) {
        yield_now();
        self.0.free(page);
    }

    fn stored_bytes(&self) -> u64 {
        self.0.stored_bytes()
    }
}

pub fn watched(pages: usize) -> Watched {
    let mirror = MirrorDevice::new((pages * 4096) as u64);
    Arc::new(FlakyDevice::new(Unhurried(mirror)))
}

/// A space of `pages` pages with these devices.
pub fn space(pages: usize, devices: Vec<Box<dyn Device>>) -> Arc<SimSpace> {
    let range = PageRange::new(BASE, pages);
    let mmu = HookedMmu::new(SimMmu::new(range, BUDGET));
    Arc::new(Space::new(mmu, range, BUDGET, devices).expect("a space"))
}

/// See the module's head.
pub struct World {
    pub space: Arc<SimSpace>,
    pub device: Watched,
    pub oracle: Oracle,
    /// The page past the last that has been written.
    end: AtomicUsize,
}

impl World {
    /// A space of `pages` pages with a device that has room for all of them.
    pub fn new(pages: usize) -> Self {
        let device = watched(pages);
        Self {
            space: space(pages, vec![Box::new(Shared(device.clone()))]),
            device,
            oracle: Oracle::new(pages as u64, pages),
            end: AtomicUsize::new(0),
        }
    }

    /// A world with more devices, numbered from 1 on, beside the watched one, which has room for
    /// `room` pages.
    pub fn beside(pages: usize, room: usize, devices: Vec<Box<dyn Device>>) -> Self {
        let device = watched(room);
        let mut all: Vec<Box<dyn Device>> = vec![Box::new(Shared(device.clone()))];
        all.extend(devices);
        Self {
            space: space(pages, all),
            device,
            oracle: Oracle::new(pages as u64, pages),
            end: AtomicUsize::new(0),
        }
    }

    /// A world whose first `pages` pages have been written, and are on the device.
    pub fn pushed_out(pages: usize) -> Self {
        let world = Self::new(4 * BUDGET);
        world.write_all(0..pages);
        world.push_out();
        for page in 0..pages {
            assert!(
                matches!(world.state(page), State::Private(_)),
                "page {page}"
            );
        }
        world
    }

    pub fn mmu(&self) -> &HookedMmu {
        self.space.mmu()
    }

    pub fn state(&self, page: usize) -> State {
        self.space.state(BASE.plus(page))
    }

    /// Serves the fault of a write to `page`, which may be present meanwhile.
    pub fn fault(&self, page: usize) {
        let mut scratch = Scratch::default();
        self.space
            .fault(BASE.plus(page), Access::Write, &mut scratch);
    }

    /// Writes the next content of `page`; returns how many faults that took.
    pub fn try_write(&self, page: usize) -> Result<usize, Fault> {
        self.end.fetch_max(page + 1, SeqCst);
        touch(&self.space, page, Access::Write, |mmu, at| {
            mmu.touch_write(at, |data| self.oracle.write(page, data))
        })
    }

    pub fn write(&self, page: usize) {
        self.try_write(page).expect("a page to write to");
    }

    /// Writes these pages, the last first, so that none is brought in ahead of its touch.
    pub fn write_all(&self, pages: Range<usize>) {
        pages.rev().for_each(|page| self.write(page));
    }

    /// Compares every byte of `page`; returns how many faults that took.
    pub fn try_check(&self, page: usize) -> Result<usize, Fault> {
        touch(&self.space, page, Access::Read, |mmu, at| {
            self.oracle.check(page, &mmu.touch_read(at)?);
            Ok(())
        })
    }

    pub fn check(&self, page: usize) {
        self.try_check(page).expect("a page to read");
    }

    /// Compares every byte of every page up to the last that was ever written.
    pub fn check_all(&self) {
        with_reclaimer(&self.space, || {
            (0..self.end.load(SeqCst)).for_each(|page| self.check(page));
        });
    }

    /// Pushes out what can be; returns the pages left in RAM.
    pub fn push_out(&self) -> usize {
        self.space.push_out(&mut Scratch::default())
    }

    /// Uses up all of the RAM with pages from `first` on, of which some were dropped in limbo: no new
    /// memory is to be had from then on, but the warm frames of those are. Returns how many there are.
    /// Until it is healed, the device takes nothing.
    pub fn leave_only_warm_frames(&self, first: usize) -> usize {
        self.device.fail_copy_in_after(0, CopyInError::Full);
        (first..first + BUDGET).for_each(|page| self.write(page));
        self.push_out();
        let in_limbo = |page: &usize| matches!(self.state(*page), State::Limbo(_));
        let in_limbo: Vec<_> = (first..first + BUDGET).filter(in_limbo).collect();
        in_limbo.iter().for_each(|&page| self.discard(page, 1));
        let charged = self.space.stats().ram_bytes.get() as usize / 4096;
        assert_eq!(charged, BUDGET, "there is new memory");
        in_limbo.len()
    }

    pub fn discard(&self, first: usize, len: usize) {
        let pages = PageRange::new(BASE.plus(first), len);
        self.space.inside().unwrap().discard(pages).unwrap();
        (first..first + len).for_each(|page| self.oracle.discard(page));
    }

    /// Whether every page of RAM that exists is charged, and nothing else is; and whether writes are tracked
    /// to just those coherent pages that are shared since a fork.
    pub fn check_invariants(&self) {
        self.space.check_invariants();
        for page in (0..self.end.load(SeqCst)).map(|page| BASE.plus(page)) {
            if matches!(self.space.state(page), State::Coherent(_)) && self.mmu().is_present(page) {
                let tracked = self.mmu().is_tracked(page);
                assert_eq!(self.space.is_shared(page), tracked, "{page:?}");
            }
        }
        let charged = self.space.stats().ram_bytes.get() as usize / 4096;
        assert_eq!(
            self.mmu().resident(),
            charged,
            "pages that exist, and pages charged"
        );
    }
}

/// The kernel forks: what is mapped is shared with the child, but for coherent pages that were pinned when
/// the gate was closed, which it copies for the child at once. To be called while it is closed.
pub fn share(space: &SimSpace, pages: PageRange) {
    let was_pinned =
        |page| matches!(space.state(page), State::Coherent(_)) && !space.is_shared(page);
    let shared = pages.iter().filter(|page| !was_pinned(*page));
    shared.for_each(|page| space.mmu().share(PageRange::new(page, 1)));
}

/// Touches a page as a CPU does, to read or to write: again after each fault. Returns how many there
/// were.
pub fn touch(
    space: &SimSpace,
    page: usize,
    kind: Access,
    mut access: impl FnMut(&HookedMmu, PageNo) -> Result<(), Fault>,
) -> Result<usize, Fault> {
    let mut scratch = None;
    for faults in 0.. {
        let met = match access(space.mmu(), BASE.plus(page)) {
            Err(Fault::Missing) => kind,
            Err(Fault::Tracked) => Access::Tracked,
            end => return end.map(|()| faults),
        };
        let scratch = scratch.get_or_insert_with(Scratch::default);
        space.fault(BASE.plus(page), met, scratch);
    }
    unreachable!()
}

/// Runs a thread's `main`. Where it panics in the middle of the core, pages stay claimed and others
/// would wait for them for ever: so the process ends, with the panic's message.
pub fn or_abort(main: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(main)) {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref().copied());
        let test = std::thread::current();
        let _ = writeln!(
            std::io::stderr(),
            "{}: {}",
            test.name().unwrap_or("a thread of a test"),
            text.unwrap_or("a panic")
        );
        std::process::abort();
    }
}

/// Runs `program` while the space's reclaimer runs.
pub fn with_reclaimer<R>(space: &SimSpace, program: impl FnOnce() -> R) -> R {
    let stop = AtomicBool::new(false);
    /// Ends the reclaimer even when the program panics, or the panic would never be seen.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }
    std::thread::scope(|scope| {
        scope.spawn(|| or_abort(|| space.run_reclaimer(&stop)));
        let _stop = Stop(&stop);
        program()
    })
}
