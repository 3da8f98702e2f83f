//! Device memory comes and goes, and ends.

use super::world::{Buffer, Over, alone, done, driver, send, sized, snapshot, space};
use std::thread;
use uhmm::events::Events;
use uhmm::{DeviceId, Event};
use uhmm_dmirror::snapshot as see;
use uhmm_dmirror::{Errno, Op, Sizes};

/// Pages of a chunk.
const CHUNK: usize = 1 << 16;

fn sizes(pages: usize) -> Sizes {
    let bytes = pages as u64 * 4096;
    Sizes {
        private: bytes,
        coherent: bytes,
    }
}

/// Which chunks of `device` were added (`true`) and removed since the last look.
fn chunks(events: &mut Events, device: DeviceId) -> Vec<(u32, bool)> {
    let told = std::iter::from_fn(|| events.try_next());
    let of_the_device = told.filter_map(|told| match told.event {
        Event::ChunkAdded { device: at, chunk } if at == device => Some((chunk, true)),
        Event::ChunkRemoved { device: at, chunk } if at == device => Some((chunk, false)),
        _ => None,
    });
    of_the_device.collect()
}

#[test]
fn chunks_that_were_removed_come_again_when_they_are_needed() {
    let _alone = alone();
    for unit in 0..4 {
        let space = space();
        let mut events = space.events();
        let driver = sized(&space, sizes(2 * CHUNK));
        let file = driver.open(unit).unwrap();
        let mut chunks = || chunks(&mut events, driver.id(unit).unwrap());
        let (memory, copy) = (Buffer::filled(&space, 700, 1), Buffer::new(&space, 700));
        let there = || send(&file, Op::MigrateToDevice, memory.all(), copy.address());
        let release = || send(&file, Op::Release, memory.all(), 0);
        assert_eq!(chunks(), [(0, true)], "a device begins with one");
        assert_eq!(there(), done(700, 0));
        assert_eq!(chunks(), []);
        assert_eq!(release(), done(0, 0));
        assert_eq!(chunks(), [(0, false)]);
        // A chunk that is new, and then those that were removed.
        for chunk in [1, 0, 0] {
            assert_eq!(there(), done(700, 0));
            copy.check(0..700, 1);
            assert_eq!(chunks(), [(chunk, true)]);
            assert_eq!(release(), done(0, 0));
            assert_eq!(chunks(), [(chunk, false)]);
            memory.check(0..700, 1);
        }
        // There is nothing to remove.
        assert_eq!(release(), done(0, 0));
        assert_eq!(chunks(), []);
    }
}

/// More than a chunk's pages: the device grows.
#[test]
fn a_device_grows_by_a_chunk() {
    let _alone = alone();
    let space = space();
    let mut events = space.events();
    let driver = sized(&space, sizes(2 * CHUNK));
    let file = driver.open(0).unwrap();
    let (few, many) = (Buffer::filled(&space, 600, 1), Buffer::new(&space, CHUNK));
    let copy = Buffer::new(&space, 600);
    let there = send(&file, Op::MigrateToDevice, few.all(), copy.address());
    assert_eq!(there, done(600, 0));
    // Pages that were never touched: they take memory of the device's alone.
    for start in (0..CHUNK).step_by(600) {
        let part = many.at(start..CHUNK.min(start + 600));
        let there = send(&file, Op::MigrateToDevice, part.clone(), copy.address());
        assert_eq!(there, done(part.len() / 4096, 0));
    }
    let device = driver.id(0).unwrap();
    assert_eq!(chunks(&mut events, device), [(0, true), (1, true)]);
    assert_eq!(send(&file, Op::Release, few.all(), 0).err(), None);
    assert_eq!(chunks(&mut events, device), [(0, false), (1, false)]);
    few.check(0..600, 1);
    many.check_zeros(0..600);
}

/// What there is no room for stays where it is, and nothing else has to leave for it.
#[test]
fn a_full_device_takes_no_more() {
    let _alone = alone();
    for unit in 0..4 {
        let space = space();
        let driver = sized(&space, sizes(100));
        let file = driver.open(unit).unwrap();
        let (memory, copy) = (
            Buffer::filled(&space, 160, 1),
            Buffer::filled(&space, 160, 2),
        );
        let there = |pages| send(&file, Op::MigrateToDevice, memory.at(pages), copy.address());
        assert_eq!(there(0..60), done(60, 0));
        copy.check(0..60, 1);
        copy.fill(0..60, 2);
        assert_eq!(there(60..160), Err(Errno::NoEnt));
        copy.check(0..160, 2);
        // As many as there was room for have gone; the device reads the rest in RAM.
        let on = |space: &uhmm::Space| {
            let usage = space.usage(memory.address(), memory.all().len()).unwrap();
            usage.devices[usize::from(driver.id(unit).unwrap().0)]
        };
        assert_eq!(on(&space), 100);
        assert_eq!(there(159..160), Err(Errno::NoEnt));
        assert_eq!(there(0..60), done(60, 0));
        assert_eq!(
            send(&file, Op::Read, memory.all(), copy.address()),
            done(160, 1)
        );
        copy.check(0..160, 1);
        assert_eq!(on(&space), 100);
        // Room is made by who chooses what leaves.
        assert_eq!(
            send(&file, Op::MigrateToSystem, memory.at(0..60), 0),
            done(60, 0)
        );
        assert_eq!(there(100..160), done(60, 0));
        memory.check(0..160, 1);
    }
}

#[test]
fn memory_is_released_while_threads_use_it() {
    let _alone = alone();
    for unit in [0, 2] {
        let space = space();
        let driver = driver(&space);
        let file = driver.open(unit).unwrap();
        let (memory, copy) = (Buffer::filled(&space, 256, 1), Buffer::new(&space, 256));
        let over = Over::default();
        thread::scope(|scope| {
            for part in [0..64, 64..128] {
                let (memory, over) = (&memory, &over);
                scope.spawn(move || {
                    for version in 1.. {
                        memory.check(part.clone(), version);
                        memory.fill(part.clone(), version + 1);
                        if over.is_over() {
                            memory.fill(part.clone(), 1);
                            break;
                        }
                    }
                });
            }
            let _over = over.at_the_end();
            for _ in 0..40 {
                let there = send(&file, Op::MigrateToDevice, memory.all(), copy.address());
                // A page may have come home before the device has looked at it.
                assert!(
                    there == done(256, 0) || there == Err(Errno::NoEnt),
                    "{there:?}"
                );
                assert_eq!(send(&file, Op::Release, memory.all(), 0), done(0, 0));
                memory.check(128..256, 1);
            }
        });
        memory.check(0..256, 1);
        assert_eq!(snapshot(&file, memory.all()), [see::WRITE; 256]);
    }
}

/// Somebody holds a page there: what can come home does, and a later release does the rest.
#[test]
fn a_page_that_is_held_keeps_its_chunk() {
    let _alone = alone();
    let space = space();
    let file = driver(&space).open(2).unwrap();
    let (memory, copy) = (Buffer::filled(&space, 32, 1), Buffer::new(&space, 32));
    let there = send(&file, Op::MigrateToDevice, memory.all(), copy.address());
    assert_eq!(there, done(32, 0));
    let pin = memory.pin(4..5);
    assert_eq!(send(&file, Op::Release, memory.all(), 0), Err(Errno::Busy));
    let is = snapshot(&file, memory.all());
    let expected = |page| {
        if page == 4 {
            see::COHERENT | see::WRITE
        } else {
            see::WRITE
        }
    };
    assert_eq!(is, (0..32).map(expected).collect::<Vec<_>>());
    drop(pin);
    assert_eq!(send(&file, Op::Release, memory.all(), 0), done(0, 0));
    memory.check(0..32, 1);
}
