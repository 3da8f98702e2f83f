//! The signal engine on real faults: several spaces, pages in flight, forks, lost pages, users without
//! privilege, and what is refused. What the program's own handler of SIGBUS gets is in `tests/sigbus`; and
//! all other tests of the library run on this engine too (`UHMM_ENGINE=signal`, `cargo xtask engines`).

#[path = "../fork/child.rs"]
mod child;
#[path = "../fork/device.rs"]
mod device;
#[path = "../common/file.rs"]
mod file;
mod flight;
mod forks;
mod heap;
#[path = "../common/heap.rs"]
mod heap_calls;
mod refused;
mod spaces;
mod stacks;
mod system;
mod users;

use child::{End, child, wait};
use device::{Mood, Moody};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use uhmm::device::PageData;
use uhmm::devices::MirrorDevice;
use uhmm::{Builder, DeviceId, Engine, Region, Space};
use uhmm_core::addr::{PAGE_SIZE, PageNo};
use uhmm_core::entry::State;
use uhmm_core::fault::Scratch;
use uhmm_testkit::Oracle;

const BUDGET: usize = 4 << 20;
const FIRST: DeviceId = DeviceId(0);

/// One test at a time, since a fork takes the whole process along.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

fn builder(engine: Engine) -> Builder {
    Builder::new(BUDGET as u64)
        .device(Box::new(MirrorDevice::new(64 << 20)))
        .engine(engine)
}

/// A region, and what must be in it.
struct World {
    space: Space,
    region: Region,
    oracle: Oracle,
}

impl World {
    fn new(pages: usize) -> Self {
        Self::within(builder(Engine::Signal).build().unwrap(), pages)
    }

    fn moody(pages: usize) -> (Self, Arc<Mood>) {
        let (device, mood) = Moody::new(Box::new(MirrorDevice::new(64 << 20)));
        let builder = Builder::new(BUDGET as u64).device(Box::new(device));
        let space = builder.engine(Engine::Signal).build().unwrap();
        (Self::within(space, pages), mood)
    }

    fn within(space: Space, pages: usize) -> Self {
        Self {
            region: space.region(pages * PAGE_SIZE).unwrap(),
            space,
            oracle: Oracle::new(16, pages),
        }
    }

    fn at(&self, page: usize) -> *mut PageData {
        assert!(page < self.oracle.pages());
        self.region.as_ptr().cast::<PageData>().wrapping_add(page)
    }

    fn state(&self, page: usize) -> State {
        let page = PageNo::containing(self.at(page) as usize);
        self.space.internals().state(page)
    }

    fn write(&self, page: usize) {
        // SAFETY: within the region, and no other thread's page now.
        self.oracle.write(page, unsafe { &mut *self.at(page) });
    }

    fn check(&self, page: usize) {
        // SAFETY: as above.
        self.oracle.check(page, unsafe { &*self.at(page) });
    }

    fn write_all(&self) {
        (0..self.oracle.pages()).for_each(|page| self.write(page));
    }

    fn check_all(&self) {
        (0..self.oracle.pages()).for_each(|page| self.check(page));
    }

    fn push_out(&self) {
        let pages = 0..self.oracle.pages();
        while !pages
            .clone()
            .all(|page| matches!(self.state(page), State::Private(_)))
        {
            self.space.internals().push_out(&mut Scratch::default());
        }
    }
}
