//! What the tests of pins, mirrors and exclusive access share: pages of a space, and what must be in
//! them. Buffers that system calls use are pinned, so that all of it holds for every fault engine.

#![allow(dead_code, reason = "each test crate uses a part of it")]

#[path = "../fork/child.rs"]
pub mod child;
#[path = "../devices/device.rs"]
pub mod device;
#[path = "../common/alone.rs"]
mod one_at_a_time;

pub use one_at_a_time::alone;

use device::{Mood, TestDevice};
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use uhmm::device::{Device, DeviceInfo, MemoryType, PAGE_SIZE, PageData};
use uhmm::memory::Protection;
use uhmm::mirror::MirrorError;
use uhmm::{Builder, DeviceId, Migrated, Place, RangeError, Space};
use uhmm_core::addr::PageNo;
use uhmm_core::entry::State;
use uhmm_core::fault::Scratch;
use uhmm_core::mirror;
use uhmm_core::stats::{DeviceStats, Stats};
use uhmm_testkit::Oracle;

/// RAM of a space, in pages, unless a test is about little of it.
pub const BUDGET: usize = 2048;
/// Pages of a device, unless a test is about few of them.
pub const DEVICE: u32 = 16384;
pub const FIRST: DeviceId = DeviceId(0);
pub const SECOND: DeviceId = DeviceId(1);
/// For calls that need no more than to be done.
pub const SOON: Duration = Duration::from_secs(10);
/// For calls that are expected to end with their patience.
pub const SHORT: Duration = Duration::from_millis(50);
pub const ALL: Protection = Protection::READ.union(Protection::WRITE);

/// A space with a device of each of these types, in this order.
pub fn space_with(memory: &[MemoryType]) -> Space {
    let info = |&memory| DeviceInfo::new("test", DEVICE).memory(memory);
    let devices = memory
        .iter()
        .map(|memory| TestDevice::boxed(info(memory)).0);
    space(BUDGET, devices.collect())
}

pub fn space(budget_pages: usize, devices: Vec<Box<dyn Device>>) -> Space {
    let builder = Builder::new((budget_pages * PAGE_SIZE) as u64);
    let builder = devices.into_iter().fold(builder, Builder::device);
    builder.build().unwrap()
}

/// Tries again until it is so.
pub fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < SOON, "not in time: {what}");
        thread::sleep(Duration::from_micros(200));
    }
}

/// Whether a device is told to try again, as on a slow machine, or in the middle of a fork.
pub fn is_for_now(error: &MirrorError) -> bool {
    let busy = mirror::MirrorError::Notifier(mirror::NotifierError::Busy);
    [MirrorError::Mirror(busy), RangeError::Forking.into()].contains(error)
}

/// Faults that this thread has taken, of any kind.
pub fn faults() -> i64 {
    // SAFETY: plain data, filled by the call.
    unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &mut usage), 0);
        usage.ru_minflt + usage.ru_majflt
    }
}

/// Pages of a space, and what must be in them.
pub struct World {
    pub space: Space,
    pub address: usize,
    pub oracle: Oracle,
}

impl World {
    /// Pages of a new space with devices of these types.
    pub fn new(memory: &[MemoryType], pages: usize) -> Self {
        Self::within(space_with(memory), pages)
    }

    /// Pages of a new space with one device, and its mood.
    pub fn moody(memory: MemoryType, pages: usize) -> (Self, Arc<Mood>) {
        let info = DeviceInfo::new("moody", DEVICE).memory(memory);
        let (device, mood) = TestDevice::boxed(info);
        (Self::within(space(BUDGET, vec![device]), pages), mood)
    }

    pub fn within(space: Space, pages: usize) -> Self {
        Self {
            address: space.memory().map(pages * PAGE_SIZE, ALL).unwrap(),
            space,
            oracle: Oracle::new(3, pages),
        }
    }

    pub fn pages(&self) -> usize {
        self.oracle.pages()
    }

    pub fn len(&self) -> usize {
        self.pages() * PAGE_SIZE
    }

    /// The address of a page.
    pub fn at(&self, page: usize) -> usize {
        assert!(page <= self.pages());
        self.address + page * PAGE_SIZE
    }

    fn data(&self, page: usize) -> *mut PageData {
        assert!(page < self.pages());
        self.at(page) as *mut PageData
    }

    pub fn stats(&self) -> &Stats {
        self.space.internals().stats()
    }

    pub fn device(&self, device: DeviceId) -> &DeviceStats {
        &self.stats().devices[usize::from(device.0)]
    }

    /// What a page is, once whoever has it in hand is done with it.
    pub fn state(&self, page: usize) -> State {
        loop {
            let number = PageNo::containing(self.at(page));
            match self.space.internals().state(number) {
                State::Migrating => thread::yield_now(),
                state => return state,
            }
        }
    }

    pub fn is_in_ram(&self, page: usize) -> bool {
        matches!(self.state(page), State::System { .. })
    }

    pub fn write(&self, page: usize) {
        // SAFETY: within the mapping, and no other thread's page now.
        self.oracle.write(page, unsafe { &mut *self.data(page) });
    }

    pub fn check(&self, page: usize) {
        // SAFETY: as above.
        self.oracle.check(page, unsafe { &*self.data(page) });
    }

    pub fn write_all(&self) {
        (0..self.pages()).for_each(|page| self.write(page));
    }

    pub fn check_all(&self) {
        (0..self.pages()).for_each(|page| self.check(page));
    }

    /// The first byte, read where the page is.
    pub fn peek(&self, page: usize) -> u8 {
        // SAFETY: within the mapping.
        unsafe { self.data(page).cast::<u8>().read_volatile() }
    }

    /// The first byte, written where the page is.
    pub fn poke(&self, page: usize, byte: u8) {
        // SAFETY: within the mapping, and no other thread's page now.
        unsafe { self.data(page).cast::<u8>().write_volatile(byte) };
    }

    /// Migrates pages, all of which are at rest.
    pub fn migrate(&self, pages: Range<usize>, to: Place) -> Migrated {
        for page in pages.clone() {
            self.state(page);
        }
        let len = pages.len() * PAGE_SIZE;
        self.space.migrate(self.at(pages.start), len, to).unwrap()
    }

    /// Migrates all, and none may stay.
    pub fn send(&self, to: Place) {
        let done = self.migrate(0..self.pages(), to);
        assert_eq!(done.left, 0, "{done:?}");
    }

    pub fn push_out(&self) {
        self.space.internals().push_out(&mut Scratch::default());
    }

    pub fn protect(&self, pages: Range<usize>, protection: Protection) -> std::io::Result<()> {
        let len = pages.len() * PAGE_SIZE;
        let memory = self.space.memory();
        // SAFETY: nothing of it is borrowed.
        unsafe { memory.protect(self.at(pages.start), len, protection) }
    }

    pub fn discard(&self, pages: Range<usize>) -> std::io::Result<()> {
        let len = pages.len() * PAGE_SIZE;
        // SAFETY: as in `protect`.
        let done = unsafe { self.space.memory().discard(self.at(pages.start), len) };
        if done.is_ok() {
            pages.for_each(|page| self.oracle.discard(page));
        }
        done
    }

    pub fn unmap(&self, pages: Range<usize>) -> std::io::Result<()> {
        let len = pages.len() * PAGE_SIZE;
        // SAFETY: as in `protect`.
        unsafe { self.space.memory().unmap(self.at(pages.start), len) }
    }

    /// Drops the contents of pages, which the oracle still knows.
    pub fn forget(&self, pages: Range<usize>) {
        let len = pages.len() * PAGE_SIZE;
        let memory = self.space.memory();
        // SAFETY: as in `protect`.
        unsafe { memory.discard(self.at(pages.start), len) }.unwrap();
    }

    pub fn map_over(&self, pages: Range<usize>) -> std::io::Result<()> {
        let (address, len) = (self.at(pages.start), pages.len() * PAGE_SIZE);
        // SAFETY: as in `protect`.
        unsafe { self.space.memory().map_at(address, len, ALL, false) }
    }

    pub fn map_foreign(&self, pages: Range<usize>) -> std::io::Result<()> {
        let (address, len) = (self.at(pages.start), pages.len() * PAGE_SIZE);
        // SAFETY: as in `protect`; nothing is mapped.
        unsafe { self.space.memory().map_foreign(address, len, || Ok(())) }
    }

    /// Maps zeros again where pages were unmapped.
    pub fn map_again(&self, pages: Range<usize>) {
        let (address, len) = (self.at(pages.start), pages.len() * PAGE_SIZE);
        // SAFETY: as in `protect`.
        unsafe { self.space.memory().map_at(address, len, ALL, true) }.unwrap();
        pages.for_each(|page| self.oracle.discard(page));
    }

    /// Moves the range to `to`.
    pub fn remap(&self, to: usize) -> std::io::Result<usize> {
        let (len, memory) = (self.len(), self.space.memory());
        // SAFETY: as in `protect`.
        unsafe { memory.remap(self.address, len, len, true, Some(to), false) }
    }

    pub fn read_mostly(&self, on: bool) {
        let memory = self.space.memory();
        memory.read_mostly(self.address, self.len(), on).unwrap();
    }

    /// Waits until a device has no page in use: what programs drop is freed by the next tick.
    pub fn wait_empty(&self, device: DeviceId) {
        wait_until("device pages come back", || {
            self.device(device).pages.get() == 0
        });
    }

    /// Nothing is pinned, exclusive or out of step any more.
    pub fn is_at_rest(&self) {
        let stats = self.stats();
        assert_eq!(stats.pins_acquired.get(), stats.pins_released.get(), "R12");
        assert_eq!(stats.page_gets.get(), stats.page_puts.get(), "R12");
        assert_eq!(stats.pinned_pages.get(), 0);
        // A handler wakes who has touched a page, and counts it then.
        wait_until("what was exclusive is not any more", || {
            stats.exclusive_pages.get() == stats.exclusive_ends.get()
        });
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.unmap(0..self.pages());
    }
}
