//! Many threads pin and release what others pin, migrate and push out (R12).

use crate::world::device::TestDevice;
use crate::world::{FIRST, SECOND, World, alone, space};
use crate::{LONGTERM, READ, WRITE, in_the_way};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use uhmm::device::{DeviceInfo, PAGE_SIZE};
use uhmm::{PinError, PinFlags, Place};
use uhmm_core::entry::State;
use uhmm_core::memory_type::MemoryType::{Coherent, Private};
use uhmm_core::pin;
use uhmm_testkit::Rng;

const PAGES: usize = 1500;

/// Every pin holds what it says, and at the end nothing is pinned.
#[test]
fn many_threads_pin_and_release_the_same_pages() {
    let _alone = alone();
    let devices = [Private, Coherent].map(|memory| {
        let info = DeviceInfo::new("test", 16384).memory(memory);
        TestDevice::boxed(info).0
    });
    let world = World::within(space(1024, devices.into()), PAGES);
    world.write_all();
    let done = AtomicBool::new(false);
    let pinned: usize = thread::scope(|scope| {
        let threads = (0..4).map(|seed| {
            let (world, done) = (&world, &done);
            scope.spawn(move || pin_at_random(world, seed, done))
        });
        let threads: Vec<_> = threads.collect();
        let places = [Place::Device(FIRST), Place::Ram, Place::Device(SECOND)];
        let (begin, mut rng) = (Instant::now(), Rng::new(77));
        while begin.elapsed() < Duration::from_secs(2) {
            let start = rng.below(PAGES as u64 - 200) as usize;
            let (address, len) = (world.at(start), 200 * PAGE_SIZE);
            let _ = world.space.migrate(address, len, rng.pick(&places));
            world.push_out();
        }
        done.store(true, SeqCst);
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    assert!(pinned > 100, "{pinned} pins");
    world.check_all();
    world.is_at_rest();
    world.send(Place::Device(FIRST));
    world.check_all();
}

/// Returns how often it has got a pin.
fn pin_at_random(world: &World, seed: u64, done: &AtomicBool) -> usize {
    let mut rng = Rng::new(seed);
    let fast = |flags| PinFlags {
        fast: true,
        ..flags
    };
    let mut pinned = 0;
    while !done.load(SeqCst) {
        let start = rng.below(PAGES as u64 - 60) as usize;
        let pages = start..start + 1 + rng.below(60) as usize;
        let flags = rng.pick(&[READ, WRITE, LONGTERM, fast(READ), fast(LONGTERM)]);
        let pin = match world.try_pin(pages.clone(), flags) {
            Ok(pin) => pin,
            // A coherent page that another thread has pinned does not leave its device.
            Err(PinError::Page(pin::PinError::Busy(_))) if flags.longterm => continue,
            Err(PinError::Page(_)) if flags.fast => continue,
            Err(other) => panic!("{other}"),
        };
        pinned += 1;
        for page in pages.clone() {
            match world.state(page) {
                State::System { .. } => {}
                State::Coherent(_) if !flags.longterm => {}
                other => panic!("a page pinned by {flags:?} is {other:?}"),
            }
        }
        pages.for_each(|page| world.check(page));
        drop(pin);
    }
    pinned
}

/// As many pins on one page as it can have, and one more.
#[test]
fn a_page_takes_so_many_pins_and_no_more() {
    let _alone = alone();
    let world = World::new(&[Private], 1);
    world.write(0);
    let mut pins: Vec<_> = (0..u16::MAX).map(|_| world.pin(0..1, READ)).collect();
    let error = in_the_way(world.try_pin(0..1, READ));
    assert!(matches!(error, pin::PinError::TooMany(_)), "{error}");
    pins.pop();
    drop(world.pin(0..1, READ));
    assert_eq!(world.stats().pinned_pages.get(), 1);
    drop(pins);
    world.send(Place::Device(FIRST));
    world.check_all();
    world.is_at_rest();
}
