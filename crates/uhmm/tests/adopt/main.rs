//! Memory of the program's own, adopted and released, on real faults: every byte against the oracle,
//! whatever becomes of the pages meanwhile.

mod bad;
mod budget;
#[path = "../common/calls.rs"]
mod calls;
#[path = "../fork/child.rs"]
mod child;
#[path = "../devices/device.rs"]
mod device;
#[path = "../common/file.rs"]
mod file;
mod forks;
mod home;
mod kernel;
mod manage;
mod odd;
#[path = "../common/alone.rs"]
mod one_at_a_time;
mod own;
mod own_copies;
#[path = "../devices/pin.rs"]
mod pin;
mod program;
mod protect;
mod release;
mod threads;
mod unmap;

use device::{Mood, TestDevice};
use one_at_a_time::alone;
use own::Own;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use uhmm::device::{Device, DeviceInfo, PageData};
use uhmm::devices::{Lz4Device, MirrorDevice};
use uhmm::{Adopted, Builder, DeviceId, Place, Space};
use uhmm_core::addr::{PAGE_SIZE, PageNo};
use uhmm_core::entry::State;
use uhmm_core::fault::Scratch;
use uhmm_core::memory_type::MemoryType;
use uhmm_testkit::Oracle;

/// RAM of a space, in pages, unless a test is about little of it.
const BUDGET: usize = 2048;
/// Pages of a device.
const DEVICE: u32 = 16384;
const FIRST: DeviceId = DeviceId(0);
/// For calls that need no more than to be done.
const SOON: Duration = Duration::from_secs(10);
/// For calls that are expected to end with their patience.
const SHORT: Duration = Duration::from_millis(50);

/// A device of `DEVICE` pages with memory of this type.
fn device(memory: MemoryType) -> (Box<dyn Device>, Arc<Mood>) {
    TestDevice::boxed(DeviceInfo::new("test", DEVICE).memory(memory))
}

/// One of each kind that a page can be sent to.
fn devices() -> Vec<(&'static str, Box<dyn Device>)> {
    let bytes = u64::from(DEVICE) << 12;
    vec![
        ("lz4", Box::new(Lz4Device::new(bytes))),
        ("mirror", Box::new(MirrorDevice::new(bytes))),
        ("coherent", device(MemoryType::Coherent).0),
    ]
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

/// Memory of the program's own, what must be in it, and a space that has adopted it, or will.
struct World {
    adopted: Option<Adopted>,
    own: Own,
    space: Space,
    oracle: Oracle,
}

impl World {
    /// Memory that is written, and not adopted yet.
    fn new(space: Space, pages: usize) -> Self {
        let world = Self {
            adopted: None,
            own: Own::map(pages),
            space,
            oracle: Oracle::new(5, pages),
        };
        world.write_all();
        world
    }

    /// Memory that is written and adopted, and a space with such a device.
    fn adopted(memory: MemoryType, pages: usize) -> (Self, Arc<Mood>) {
        let (device, mood) = device(memory);
        let mut world = Self::new(space(BUDGET, vec![device]), pages);
        world.adopt();
        (world, mood)
    }

    fn pages(&self) -> usize {
        self.oracle.pages()
    }

    fn adopt(&mut self) {
        // SAFETY: the memory is a mapping of the test's own, which is unmapped after its release.
        let adopted = unsafe { self.space.adopt(self.own.at(0), self.own.len()) };
        self.adopted = Some(adopted.unwrap());
    }

    fn handle(&self) -> &Adopted {
        self.adopted.as_ref().expect("adopted memory")
    }

    fn release(&mut self) {
        let mut adopted = self.adopted.take().expect("adopted memory");
        adopted.release(SOON).unwrap();
    }

    fn at(&self, page: usize) -> *mut PageData {
        self.own.at(page).cast()
    }

    fn number(&self, page: usize) -> PageNo {
        let number = self.space.page_at(self.at(page) as usize);
        number.expect("adopted memory")
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

    /// Waits until no handler has any of the pages in its hands.
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

    /// Migrates all, and none may stay.
    fn send(&self, to: Place) {
        self.rest();
        let done = self.handle().migrate(to).unwrap();
        assert_eq!(done.left, 0, "{done:?}");
    }

    fn push_out(&self) {
        self.space.internals().push_out(&mut Scratch::default());
    }

    /// Pages of the first device in use.
    fn on_device(&self) -> usize {
        self.space.internals().stats().devices[0].pages.get() as usize
    }

    /// Pages of RAM that are charged to the space.
    fn charged(&self) -> usize {
        self.space.internals().stats().ram_bytes.get() as usize / PAGE_SIZE
    }

    /// Nothing of the memory is the space's any more, and all of it is the program's, as it was.
    fn check_released(&self) {
        assert!(self.adopted.is_none());
        assert!(self.own.flags().iter().all(|flags| {
            let mut flags = flags.split(' ');
            !flags.any(|flag| ["um", "uw"].contains(&flag))
        }));
        let address = self.at(0) as usize;
        let usage = self.space.usage(address, self.own.len());
        assert_eq!(usage, Err(uhmm::RangeError::Foreign));
        assert_eq!(self.space.page_at(address), None);
        self.check_all();
        self.write_all();
        self.check_all();
        self.space.internals().check_invariants();
    }
}
