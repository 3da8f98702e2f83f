//! Devices that are at work all the time, or for long: the program waits for them, and no longer than it
//! has to.

use crate::world::device::TestDevice;
use crate::world::{FIRST, World, alone, space};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use uhmm::Place;
use uhmm::device::DeviceInfo;

const PAGES: usize = 64;

/// A touch of the program's waits for a step of the device, not for its last one.
#[test]
fn a_device_that_is_always_at_work_does_not_starve_the_program() {
    let _alone = alone();
    let world = World::new(&[uhmm::device::MemoryType::Private], PAGES);
    world.write_all();
    let mirror = world.mirror();
    let done = AtomicBool::new(false);
    let longest = thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(SeqCst) {
                    for page in 1..PAGES {
                        // Pages that are always there: the lock is all that it waits for.
                        mirror.read(world.at(page), &mut [0; 64]).unwrap();
                    }
                }
            });
        }
        let round = |_| {
            let begin = Instant::now();
            world.migrate(0..1, Place::Device(FIRST));
            world.check(0);
            begin.elapsed()
        };
        let longest = (0..200).map(round).max().unwrap();
        done.store(true, SeqCst);
        longest
    });
    assert!(longest < Duration::from_secs(2), "{longest:?} for a touch");
}

/// A device that has its table locked for long holds up who needs its pages, also when RAM is short; that
/// is no want of RAM, and kills nobody.
#[test]
fn a_device_that_holds_its_table_for_long_is_waited_for() {
    let _alone = alone();
    let (device, _) = TestDevice::boxed(DeviceInfo::new("test", 16384));
    let world = World::within(space(512, vec![device]), 2048);
    let mirror = world.mirror();
    for page in 0..400 {
        world.write(page);
        mirror.read(world.at(page), &mut [0]).unwrap();
    }
    let table = mirror.lock().unwrap();
    thread::scope(|scope| {
        let parts = [400..1200, 1200..2048];
        let writing = parts.map(|pages| {
            let world = &world;
            scope.spawn(move || pages.for_each(|page| world.write(page)))
        });
        // In the end both wait: one for the device, with what it is to push out, one for RAM.
        thread::sleep(Duration::from_millis(1500));
        assert!(!writing.iter().any(|thread| thread.is_finished()));
        drop(table);
        writing
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    });
    world.check_all();
}
