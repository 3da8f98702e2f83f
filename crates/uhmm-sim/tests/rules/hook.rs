//! An MMU that a test can step into: what it was given to do before a call runs there, on the
//! calling thread, as another thread might just then. So an interleaving is a line of a test.

use crate::allocations;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use uhmm_core::addr::{DeviceAddr, FrameNo, Home, PageData, PageNo, PageRange};
use uhmm_core::foreign::{Foreign, ForeignMemory, Refusal};
use uhmm_core::frames::Frame;
use uhmm_core::mmu::{Mmu, Progress, Tracking};
use uhmm_core::stats::Stats;
use uhmm_sim::SimMmu;

/// A call to step into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Take,
    Put,
    Relocate,
    Copy,
    Discard,
    Unshare,
    Untrack,
    WithArena,
    Wait,
    Look,
    Populate,
    TryCopy,
}

type Step = Box<dyn FnOnce() + Send>;

/// [`SimMmu`] with steps of the test in between.
pub struct HookedMmu {
    sim: SimMmu,
    steps: Mutex<VecDeque<(Op, Step)>>,
    /// Pages that [`Mmu::take`] was asked to take.
    pub asked_to_take: AtomicU64,
    /// Calls of [`Mmu::wait`].
    pub waits: AtomicU64,
    /// Calls of [`ForeignMemory::look`].
    pub looks: AtomicU64,
    /// Calls of [`ForeignMemory::populate`].
    pub populated: AtomicU64,
    /// Calls of [`ForeignMemory::try_read`] and [`ForeignMemory::try_write`].
    pub copies: AtomicU64,
}

impl HookedMmu {
    pub fn new(sim: SimMmu) -> Self {
        Self {
            sim,
            steps: Mutex::default(),
            asked_to_take: AtomicU64::new(0),
            waits: AtomicU64::new(0),
            looks: AtomicU64::new(0),
            populated: AtomicU64::new(0),
            copies: AtomicU64::new(0),
        }
    }

    /// Runs `step` once, before the next call of `op` that no other step waits for.
    pub fn before(&self, op: Op, step: impl FnOnce() + Send + 'static) {
        self.steps.lock().unwrap().push_back((op, Box::new(step)));
    }

    /// Steps that have not been run.
    pub fn steps_left(&self) -> usize {
        self.steps.lock().unwrap().len()
    }

    fn at(&self, op: Op) {
        let step = {
            let mut steps = self.steps.lock().unwrap();
            let due = steps.iter().position(|(when, _)| *when == op);
            due.and_then(|due| steps.remove(due))
        };
        if let Some((_, step)) = step {
            step();
        }
    }
}

impl std::ops::Deref for HookedMmu {
    type Target = SimMmu;

    fn deref(&self) -> &SimMmu {
        &self.sim
    }
}

/// What the simulation allocates for itself, a kernel would not.
fn kernel<R>(call: impl FnOnce() -> R) -> R {
    allocations::uncounted(call)
}

impl ForeignMemory for HookedMmu {
    fn look(&self, pages: PageRange, each: &mut dyn FnMut(PageRange, Foreign)) -> bool {
        self.looks.fetch_add(1, Relaxed);
        self.at(Op::Look);
        self.sim.look(pages, each)
    }

    fn populate(&self, pages: PageRange, write: bool) -> Result<(), Refusal> {
        self.at(Op::Populate);
        self.populated.fetch_add(1, Relaxed);
        self.sim.populate(pages, write)
    }

    fn huge(&self, pages: PageRange, each: &mut dyn FnMut(PageRange)) {
        self.sim.huge(pages, each);
    }

    fn try_read(&self, page: PageNo, offset: usize, to: &mut [u8]) -> usize {
        self.at(Op::TryCopy);
        self.copies.fetch_add(1, Relaxed);
        self.sim.try_read(page, offset, to)
    }

    fn try_write(&self, page: PageNo, offset: usize, from: &[u8]) -> usize {
        self.at(Op::TryCopy);
        self.copies.fetch_add(1, Relaxed);
        self.sim.try_write(page, offset, from)
    }
}

impl Mmu for HookedMmu {
    type Table = <SimMmu as Mmu>::Table;

    fn table(&self, len: usize) -> Option<Self::Table> {
        self.sim.table(len)
    }

    fn stats(&self) -> &Stats {
        self.sim.stats()
    }

    fn add_arena(&self, device: u8, pages: u32, node: Option<u32>) -> bool {
        self.sim.add_arena(device, pages, node)
    }

    fn take(&self, pages: PageRange, into: Home) -> Progress {
        self.asked_to_take.fetch_add(pages.len as u64, Relaxed);
        kernel(|| {
            self.at(Op::Take);
            self.sim.take(pages, into)
        })
    }

    fn put(&self, from: Home, pages: PageRange) -> Progress {
        kernel(|| {
            self.at(Op::Put);
            self.sim.put(from, pages)
        })
    }

    fn relocate(&self, from: PageRange, to: PageNo) -> Progress {
        kernel(|| {
            self.at(Op::Relocate);
            self.sim.relocate(from, to)
        })
    }

    fn copy(&self, from: &[PageData], at: PageNo, tracking: Tracking) -> Progress {
        kernel(|| {
            self.at(Op::Copy);
            self.sim.copy(from, at, tracking)
        })
    }

    fn manages(&self, page: PageNo) -> bool {
        self.sim.manages(page)
    }

    fn track(&self, pages: PageRange) -> bool {
        kernel(|| self.sim.track(pages))
    }

    fn mapped_here_alone(&self, pages: PageRange) -> usize {
        self.sim.mapped_here_alone(pages)
    }

    fn untrack(&self, page: PageNo) {
        kernel(|| {
            self.at(Op::Untrack);
            self.sim.untrack(page);
        });
    }

    fn peek(&self, page: PageNo, to: &mut PageData) -> bool {
        kernel(|| self.sim.peek(page, to))
    }

    fn read_mapped(&self, page: PageNo, offset: usize, to: &mut [u8]) {
        kernel(|| self.sim.read_mapped(page, offset, to));
    }

    fn write_mapped(&self, page: PageNo, offset: usize, from: &[u8]) {
        kernel(|| self.sim.write_mapped(page, offset, from));
    }

    fn is_writable(&self, page: PageNo) -> bool {
        kernel(|| self.sim.is_writable(page))
    }

    fn wake(&self, pages: PageRange) {
        kernel(|| self.sim.wake(pages));
    }

    fn discard(&self, pages: PageRange) {
        kernel(|| {
            self.at(Op::Discard);
            self.sim.discard(pages);
        });
    }

    fn poison(&self, page: PageNo) {
        kernel(|| self.sim.poison(page));
    }

    fn unshare(&self, pages: PageRange) {
        kernel(|| {
            self.at(Op::Unshare);
            self.sim.unshare(pages);
        });
    }

    fn present(&self, pages: PageRange, each: &mut dyn FnMut(PageRange)) {
        self.sim.present(pages, each);
    }

    fn with_frame(&self, frame: &Frame, with: &mut dyn FnMut(&mut PageData)) {
        self.sim.with_frame(frame, with);
    }

    fn with_frames(&self, frames: &[&Frame], with: &mut dyn FnMut(&[&PageData])) {
        self.sim.with_frames(frames, with);
    }

    fn with_arena(&self, at: DeviceAddr, with: &mut dyn FnMut(&mut PageData)) -> bool {
        let counting = allocations::is_counting();
        kernel(|| {
            self.at(Op::WithArena);
            self.sim.with_arena(at, &mut |data| {
                allocations::with_counting(counting, || with(data));
            })
        })
    }

    fn read_arena(&self, at: DeviceAddr, offset: usize, to: &mut [u8]) {
        kernel(|| self.sim.read_arena(at, offset, to));
    }

    fn drop_arena(&self, first: DeviceAddr, len: usize) {
        kernel(|| self.sim.drop_arena(first, len));
    }

    fn drop_frames(&self, first: FrameNo, len: usize) {
        kernel(|| self.sim.drop_frames(first, len));
    }

    fn wait(&self, word: &AtomicU64, seen: u64, at_most: Duration) {
        self.waits.fetch_add(1, Relaxed);
        kernel(|| {
            self.at(Op::Wait);
            self.sim.wait(word, seen, at_most);
        });
    }

    fn now(&self) -> Duration {
        self.sim.now()
    }

    fn wake_waiters(&self, word: &AtomicU64) {
        kernel(|| self.sim.wake_waiters(word));
    }

    fn out_of_memory(&self) {
        self.sim.out_of_memory();
    }
}
