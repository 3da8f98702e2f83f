//! Real faults against the oracle: threads that read and write at random several times what fits,
//! while ranges come, go, move and change, everything is pushed out again and again, and at last a
//! device is removed. The kernel says how much is in RAM all the while.
//!
//! `UHMM_STRESS_SECONDS` is how long each case runs; a case is a set of devices and a multiple of
//! the budget. `UHMM_STRESS_SEED` brings back what the threads do.

mod ranges;
mod resident;

use ranges::Ranges;
use resident::Resident;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use uhmm::device::{Device, PageData};
use uhmm::devices::{Lz4Device, MirrorDevice};
use uhmm::{Builder, Region, Space};
use uhmm_core::addr::{PAGE_SIZE, PageNo, PageRange};
use uhmm_core::fault::Scratch;
use uhmm_testkit::{Oracle, Rng};

const BUDGET: usize = 8 << 20;
const THREADS: usize = 2;

/// One case at a time: the machine's RAM and CPUs are for one.
static ALONE: Mutex<()> = Mutex::new(());

fn setting(name: &str, default: f64) -> f64 {
    std::env::var(name).map_or(default, |value| value.parse().expect(name))
}

/// Says how to bring a failed case back.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("failed with UHMM_STRESS_SEED={}", self.0);
        }
    }
}

/// Memory that several threads use, each its own pages.
struct Pages {
    address: usize,
    oracle: Oracle,
}

impl Pages {
    fn new(region: &Region, seed: u64) -> Self {
        Self {
            address: region.as_ptr() as usize,
            oracle: Oracle::new(seed, region.len() / PAGE_SIZE),
        }
    }

    fn at(&self, page: usize) -> *mut PageData {
        assert!(page < self.oracle.pages());
        (self.address + page * PAGE_SIZE) as *mut PageData
    }

    fn write(&self, page: usize) {
        // SAFETY: within the region, which outlives this, and no other thread's page.
        self.oracle.write(page, unsafe { &mut *self.at(page) });
    }

    fn check(&self, page: usize) {
        // SAFETY: as above.
        self.oracle.check(page, unsafe { &*self.at(page) });
    }
}

fn case(multiple: usize, devices: Vec<Box<dyn Device>>) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let seed = setting("UHMM_STRESS_SEED", 1.0) as u64;
    let time = Duration::from_secs_f64(setting("UHMM_STRESS_SECONDS", 2.5));
    let _seed = Seed(seed);
    let count = devices.len();
    let mut builder = Builder::new(BUDGET as u64);
    for device in devices {
        builder = builder.device(device);
    }
    let space = builder.build().unwrap();
    let mut region = space.region(multiple * BUDGET).unwrap();
    let pages = Pages::new(&region, seed);
    let done = AtomicBool::new(false);
    let samples = AtomicU64::new(0);
    thread::scope(|scope| {
        let mut workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (pages, seed) = (&pages, Seed(seed));
                scope.spawn(move || {
                    let rng = Rng::new(seed.0 * 64 + thread as u64);
                    touch_at_random(pages, thread, rng, time);
                    drop(seed);
                })
            })
            .collect();
        workers.push(scope.spawn(|| Ranges::new(&space, seed).run(time)));
        scope.spawn(|| push_out_again_and_again(&space, &done));
        scope.spawn(|| compact_memory_again_and_again(&done));
        let watcher = scope.spawn(|| Resident::new(&space, BUDGET).watch(&done, &samples));
        let ended: Vec<_> = workers
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        done.store(true, SeqCst);
        assert!(ended.iter().all(Result::is_ok), "a thread has failed");
        watcher.join().expect("RAM stays within the budget");
    });
    assert!(
        samples.load(SeqCst) >= 10,
        "the kernel was asked now and then"
    );
    let touched = (0..pages.oracle.pages()).rev();
    touched.for_each(|page| pages.check(page));
    let stats = space.internals().stats();
    assert!(stats.pages_to_device.get() as usize > multiple * BUDGET / PAGE_SIZE / 4);
    assert!(stats.pages_to_system.get() > 0 && stats.limbo_faults.get() > 0);

    let keep = if count > 1 {
        multiple * BUDGET
    } else {
        // What is left must fit in RAM: there is no other device to take it.
        let keep = BUDGET / 2;
        let rest = region.as_ptr() as usize + keep;
        // SAFETY: nothing borrows the range.
        unsafe { space.memory().discard(rest, region.len() - keep) }.unwrap();
        keep
    };
    space
        .remove_device(uhmm::DeviceId(0), Duration::from_secs(60))
        .expect("every page can leave the first device");
    assert_eq!(stats.devices[0].pages.get(), 0);
    (0..keep / PAGE_SIZE).for_each(|page| pages.check(page));
    assert_eq!(stats.poisoned_pages.get(), 0);

    // The contents have been dropped, or are on the other device: zeros from here on.
    region.clear().unwrap();
    assert!(
        region.as_slice()[..BUDGET / 4]
            .iter()
            .all(|&byte| byte == 0)
    );
    drop(region);
    settled(&space);
    space.internals().check_invariants();
}

/// Waits until the reclaimer has nothing left to do.
fn settled(space: &Space) {
    let stats = space.internals().stats();
    let now = || (stats.ram_bytes.get(), stats.pages_to_device.get());
    let (mut before, begin) = (now(), Instant::now());
    loop {
        thread::sleep(Duration::from_millis(150));
        if now() == before {
            break;
        }
        before = now();
        assert!(begin.elapsed() < Duration::from_secs(20), "it never rests");
    }
}

fn touch_at_random(pages: &Pages, thread: usize, mut rng: Rng, time: Duration) {
    let end = Instant::now() + time;
    let mine = pages.oracle.pages() / THREADS;
    while Instant::now() < end {
        // Stretches in order, and single touches; each thread has every other page.
        let first = rng.below(mine as u64) as usize;
        let len = if rng.one_in(8) { 1 + rng.below(64) } else { 1 };
        let write = rng.one_in(2);
        for page in (first..mine).take(len as usize) {
            let page = page * THREADS + thread;
            if write {
                pages.write(page);
            } else {
                pages.check(page);
            }
        }
    }
}

fn push_out_again_and_again(space: &Space, done: &AtomicBool) {
    let mut scratch = Scratch::default();
    while !done.load(SeqCst) {
        thread::sleep(Duration::from_millis(120));
        space.internals().push_out(&mut scratch);
    }
}

/// Lets the kernel move the physical pages under us, where we may ask it to: moves of ours meet its
/// own then.
fn compact_memory_again_and_again(done: &AtomicBool) {
    while !done.load(SeqCst) {
        if let Err(error) = std::fs::write("/proc/sys/vm/compact_memory", "1") {
            eprintln!("the kernel's own page migration is left to chance: {error}");
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn lz4(bytes: u64) -> Box<dyn Device> {
    Box::new(Lz4Device::new(bytes))
}

fn mirror(bytes: u64) -> Box<dyn Device> {
    Box::new(MirrorDevice::new(bytes))
}

const PLENTY: u64 = 256 << 20;

#[test]
fn lz4_at_4_times_the_budget() {
    case(4, vec![lz4(PLENTY)]);
}

#[test]
fn lz4_at_16_times_the_budget() {
    case(16, vec![lz4(PLENTY)]);
}

#[test]
fn mirror_at_4_times_the_budget() {
    case(4, vec![mirror(PLENTY)]);
}

#[test]
fn mirror_at_16_times_the_budget() {
    case(16, vec![mirror(PLENTY)]);
}

/// The first device is soon full, and the second takes the rest.
#[test]
fn lz4_then_mirror_at_4_times_the_budget() {
    case(4, vec![lz4(4 << 20), mirror(PLENTY)]);
}

#[test]
fn lz4_then_mirror_at_16_times_the_budget() {
    case(16, vec![lz4(16 << 20), mirror(PLENTY)]);
}

/// The state of every page of a region: for tests that need one in a given state.
#[test]
fn pages_of_a_region_are_those_of_the_core() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let space = Builder::new(BUDGET as u64)
        .device(mirror(PLENTY))
        .build()
        .unwrap();
    let mut region = space.region(1 << 20).unwrap();
    region.as_mut_slice()[5 * PAGE_SIZE] = 1;
    let first = PageNo::containing(region.as_ptr() as usize);
    let mapped = PageRange::new(first, 256)
        .iter()
        .filter(|&page| space.internals().state(page) != uhmm_core::entry::State::None);
    assert_eq!(mapped.collect::<Vec<_>>(), [first.plus(5)]);
}
