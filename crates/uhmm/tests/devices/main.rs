//! Device memory through the public library, on real faults: what each type of memory promises,
//! migration by request, removal, failure, and fork, each against the oracle.

#[path = "../common/calls.rs"]
mod calls;
mod chaos;
#[path = "../fork/child.rs"]
mod child;
mod coherent;
mod cow;
mod device;
mod driver;
mod duplicates;
mod failure;
#[path = "../common/faults.rs"]
mod faults;
mod faulty;
#[path = "../common/file.rs"]
mod file;
mod forks;
mod hints;
mod hints_last;
mod mapped;
mod numa;
#[path = "../common/alone.rs"]
mod one_at_a_time;
mod pin;
mod private;
mod ranges;
mod removal;
mod room;
mod usage;
mod views;

use device::{Mood, TestDevice};
use one_at_a_time::alone;
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use uhmm::device::{Device, DeviceInfo, PageData};
use uhmm::memory::Protection;
use uhmm::{Builder, DeviceId, Migrated, Place, Space};
use uhmm_core::addr::{PAGE_SIZE, PageNo};
use uhmm_core::entry::State;
use uhmm_core::fault::Scratch;
use uhmm_core::memory_type::MemoryType;
use uhmm_core::stats::{DeviceStats, Stats};
use uhmm_testkit::Oracle;

/// RAM of a space, in pages, unless a test is about little of it.
const BUDGET: usize = 2048;
/// Pages of a device, unless a test is about few of them.
const DEVICE: u32 = 16384;
const FIRST: DeviceId = DeviceId(0);
const SECOND: DeviceId = DeviceId(1);
/// For calls that need no more than to be done.
const SOON: Duration = Duration::from_secs(10);
/// For calls that are expected to end with their patience.
const SHORT: Duration = Duration::from_millis(50);

/// A device of `DEVICE` pages with memory of this type.
fn device(memory: MemoryType) -> (Box<dyn Device>, Arc<Mood>) {
    TestDevice::boxed(DeviceInfo::new("test", DEVICE).memory(memory))
}

/// A space with devices of these types, in this order.
fn space_with(memory: &[MemoryType]) -> Space {
    let devices = memory.iter().map(|&memory| device(memory).0).collect();
    space(BUDGET, devices)
}

fn space(budget_pages: usize, devices: Vec<Box<dyn Device>>) -> Space {
    let builder = Builder::new((budget_pages * PAGE_SIZE) as u64);
    let builder = devices.into_iter().fold(builder, Builder::device);
    builder.build().unwrap()
}

/// Tries again until it is so.
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < SOON, "not in time: {what}");
        thread::sleep(Duration::from_micros(200));
    }
}

/// Pages of a space, and what must be in them.
struct World {
    space: Space,
    address: usize,
    oracle: Oracle,
}

impl World {
    /// Pages of a new space with devices of these types.
    fn new(memory: &[MemoryType], pages: usize) -> Self {
        Self::within(space_with(memory), pages)
    }

    /// Pages of a new space with one device, and its mood.
    fn moody(memory: MemoryType, pages: usize) -> (Self, Arc<Mood>) {
        let (device, mood) = device(memory);
        (Self::within(space(BUDGET, vec![device]), pages), mood)
    }

    fn within(space: Space, pages: usize) -> Self {
        let all = Protection::READ | Protection::WRITE;
        Self {
            address: space.memory().map(pages * PAGE_SIZE, all).unwrap(),
            space,
            oracle: Oracle::new(3, pages),
        }
    }

    fn pages(&self) -> usize {
        self.oracle.pages()
    }

    fn len(&self) -> usize {
        self.pages() * PAGE_SIZE
    }

    fn at(&self, page: usize) -> *mut PageData {
        assert!(page < self.pages());
        (self.address + page * PAGE_SIZE) as *mut PageData
    }

    fn number(&self, page: usize) -> PageNo {
        PageNo::containing(self.at(page) as usize)
    }

    fn stats(&self) -> &Stats {
        self.space.internals().stats()
    }

    fn device(&self, device: DeviceId) -> &DeviceStats {
        &self.stats().devices[usize::from(device.0)]
    }

    /// What a page is, once the handler that brought it in is done with it.
    fn state(&self, page: usize) -> State {
        loop {
            match self.space.internals().state(self.number(page)) {
                State::Migrating => thread::yield_now(),
                state => return state,
            }
        }
    }

    /// Waits until no handler has any of the pages, or RAM for them, in its hands.
    fn rest(&self) {
        (0..self.pages()).for_each(|page| _ = self.state(page));
    }

    fn write(&self, page: usize) {
        // SAFETY: within the mapping, and no other thread's page now.
        self.oracle.write(page, unsafe { &mut *self.at(page) });
    }

    fn check(&self, page: usize) {
        // SAFETY: as above.
        self.oracle.check(page, unsafe { &*self.at(page) });
    }

    fn write_all(&self) {
        (0..self.pages()).for_each(|page| self.write(page));
    }

    fn check_all(&self) {
        (0..self.pages()).for_each(|page| self.check(page));
    }

    /// The first byte, read where the page is.
    fn peek(&self, page: usize) -> u8 {
        // SAFETY: within the mapping.
        unsafe { self.at(page).cast::<u8>().read_volatile() }
    }

    /// Writes the first byte that is there already.
    fn poke(&self, page: usize) {
        let byte = self.at(page).cast::<u8>();
        // SAFETY: within the mapping, and no other thread's page now.
        unsafe { byte.write_volatile(byte.read_volatile()) };
    }

    /// Migrates pages, all of which are at rest.
    fn migrate(&self, pages: Range<usize>, to: Place) -> Migrated {
        for page in pages.clone() {
            self.state(page);
        }
        let address = self.at(pages.start) as usize;
        self.space
            .migrate(address, pages.len() * PAGE_SIZE, to)
            .unwrap()
    }

    /// Migrates all, and none may stay.
    fn send(&self, to: Place) {
        let done = self.migrate(0..self.pages(), to);
        assert_eq!(done.left, 0, "{done:?}");
    }

    fn push_out(&self) {
        self.space.internals().push_out(&mut Scratch::default());
    }

    fn protect(&self, pages: Range<usize>, protection: Protection) {
        let (address, len) = (self.at(pages.start) as usize, pages.len() * PAGE_SIZE);
        let memory = self.space.memory();
        // SAFETY: nothing borrows the range.
        unsafe { memory.protect(address, len, protection) }.unwrap();
    }

    /// Waits until a device has no page in use: what programs drop is freed by the next tick.
    fn wait_empty(&self, device: DeviceId) {
        wait_until("device pages come back", || {
            self.device(device).pages.get() == 0
        });
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // SAFETY: nothing borrows the range.
        let _ = unsafe { self.space.memory().unmap(self.address, self.len()) };
    }
}
