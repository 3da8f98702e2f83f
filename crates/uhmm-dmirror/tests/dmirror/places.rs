//! Pages here and there: on other devices, of several kinds in one range, held by others.

use super::world::{Buffer, COHERENT, PRIVATE, alone, done, driver, send, snapshot, space};
use uhmm::memory::Protection;
use uhmm_dmirror::snapshot as see;
use uhmm_dmirror::{Errno, Op};

/// Each device sees its own pages, and those of others if the CPU does.
#[test]
fn every_device_sees_every_other_as_it_can() {
    let _alone = alone();
    let space = space();
    let driver = driver(&space);
    let files = [0, 1, 2, 3].map(|unit| driver.open(unit).unwrap());
    let (memory, copy) = (Buffer::filled(&space, 8, 1), Buffer::new(&space, 8));
    for (unit, file) in files.iter().enumerate() {
        let there = send(
            file,
            Op::MigrateToDevice,
            memory.at(unit..unit + 1),
            copy.address(),
        );
        assert_eq!(there, done(1, 0));
    }
    memory.protect(2..8, Protection::READ);
    memory.protect(5..6, Protection::empty());
    memory.unmap(6..7);
    for (unit, file) in files.iter().enumerate() {
        let byte = |page: usize| match page {
            0 | 1 if page == unit => see::PRIVATE | see::WRITE,
            0 | 1 => see::NONE,
            2 | 3 if page == unit => see::COHERENT | see::READ,
            2 | 3 => see::COHERENT_REMOTE | see::READ,
            5 | 6 => see::ERROR,
            _ => see::READ,
        };
        let expected: Vec<u8> = (0..8).map(byte).collect();
        for _ in 0..2 {
            assert_eq!(snapshot(file, memory.all()), expected, "device {unit}");
        }
    }
    memory.check(0..5, 1);
}

/// What was never touched is not there; a look does not bring it.
#[test]
fn a_look_brings_nothing() {
    let _alone = alone();
    let space = space();
    let file = driver(&space).open(0).unwrap();
    let memory = Buffer::new(&space, 600);
    assert_eq!(snapshot(&file, memory.all()), [see::NONE; 600]);
    memory.fill(599..600, 1);
    assert_eq!(snapshot(&file, memory.all())[599], see::WRITE);
    assert_eq!(snapshot(&file, memory.all())[..500], [see::NONE; 500]);
}

/// A range of all kinds goes as far as it can, and is still an error where not all of it has.
#[test]
fn what_is_on_another_device_stays_there() {
    let _alone = alone();
    for (to, other) in [(0, 1), (0, 2), (2, 3), (2, 0)] {
        let space = space();
        let driver = driver(&space);
        let (file, there) = (driver.open(to).unwrap(), driver.open(other).unwrap());
        let (memory, copy) = (Buffer::filled(&space, 12, 1), Buffer::new(&space, 12));
        let sent = send(&there, Op::MigrateToDevice, memory.at(4..8), copy.address());
        assert_eq!(sent, done(4, 0));
        copy.fill(0..12, 5);
        let sent = send(&file, Op::MigrateToDevice, memory.all(), copy.address());
        assert_eq!(sent, Err(Errno::NoEnt));
        copy.check(0..12, 5);
        let usage = space.usage(memory.address(), memory.all().len()).unwrap();
        let on = |unit| usage.devices[usize::from(driver.id(unit).unwrap().0)];
        assert_eq!((on(to), on(other)), (8, 4));
        // Nothing of this one is at the other, and nothing of the other comes home by this one.
        assert_eq!(
            send(&file, Op::MigrateToSystem, memory.all(), 0),
            done(8, 0)
        );
        assert_eq!(
            send(&there, Op::MigrateToSystem, memory.all(), 0),
            done(4, 0)
        );
        memory.check(0..12, 1);
    }
}

/// Two devices read the same pages; they go to one of them, and the other still reads them.
#[test]
fn two_devices_have_the_same_pages() {
    let _alone = alone();
    for units in [PRIVATE, COHERENT, [0, 2], [3, 1]] {
        let space = space();
        let files = units.map(|unit| driver(&space).open(unit).unwrap());
        let (memory, copy) = (Buffer::filled(&space, 6, 1), Buffer::new(&space, 6));
        memory.protect(0..6, Protection::READ);
        for file in &files {
            copy.fill(0..6, 9);
            assert_eq!(
                send(file, Op::Read, memory.all(), copy.address()),
                done(6, 1)
            );
            copy.check(0..6, 1);
        }
        let there = send(&files[1], Op::MigrateToDevice, memory.all(), copy.address());
        assert_eq!(there, done(6, 0));
        copy.fill(0..6, 9);
        assert_eq!(
            send(&files[0], Op::Read, memory.all(), copy.address()),
            done(6, 1)
        );
        copy.check(0..6, 1);
    }
}

/// Not all of it is to be had: the device says so, and the program finds everything.
#[test]
fn a_part_of_a_range_is_not_enough_to_be_alone_with() {
    let _alone = alone();
    let space = space();
    let driver = driver(&space);
    let (file, other) = (driver.open(0).unwrap(), driver.open(2).unwrap());
    let (memory, copy) = (Buffer::filled(&space, 32, 1), Buffer::filled(&space, 32, 2));
    let exclusive = || send(&file, Op::Exclusive, memory.all(), copy.address());

    let pin = memory.pin(7..8);
    assert_eq!(exclusive(), Err(Errno::Busy));
    drop(pin);
    memory.protect(9..10, Protection::READ);
    assert_eq!(exclusive(), Err(Errno::Busy));
    memory.protect(9..10, Protection::READ.union(Protection::WRITE));
    // In memory that the CPU maps: its device's already.
    memory.check(3..4, 1);
    assert!(
        send(
            &other,
            Op::MigrateToDevice,
            memory.at(3..4),
            memory.at(20..21).start
        )
        .is_ok()
    );
    memory.fill(20..21, 1);
    assert_eq!(exclusive(), Err(Errno::Busy));
    copy.check(0..32, 2);
    memory.check(0..32, 1);
    assert!(send(&other, Op::MigrateToSystem, memory.all(), 0).is_ok());
    assert_eq!(exclusive(), done(32, 0));
    copy.check(0..32, 1);
    memory.check(0..32, 1);
}

/// One device takes from another what that has alone.
#[test]
fn a_page_is_one_devices_alone() {
    let _alone = alone();
    let space = space();
    let driver = driver(&space);
    let (file, other) = (driver.open(0).unwrap(), driver.open(1).unwrap());
    let (memory, copy) = (Buffer::filled(&space, 8, 1), Buffer::new(&space, 8));
    assert_eq!(
        send(&file, Op::Exclusive, memory.all(), copy.address()),
        done(8, 0)
    );
    assert_eq!(
        send(&other, Op::CheckExclusive, memory.all(), 0),
        done(0, 0)
    );
    assert_eq!(
        send(&other, Op::Exclusive, memory.all(), copy.address()),
        done(8, 0)
    );
    assert_eq!(send(&file, Op::CheckExclusive, memory.all(), 0), done(0, 0));
    assert_eq!(
        send(&other, Op::CheckExclusive, memory.all(), 0),
        Err(Errno::Perm)
    );
    // The first one reads them, and that ends it.
    assert_eq!(
        send(&file, Op::Read, memory.all(), copy.address()),
        done(8, 1)
    );
    copy.check(0..8, 1);
    assert_eq!(
        send(&other, Op::CheckExclusive, memory.all(), 0),
        done(0, 0)
    );
}

/// A pinned page stays in RAM.
#[test]
fn what_is_pinned_does_not_migrate() {
    let _alone = alone();
    for unit in 0..4 {
        let space = space();
        let file = driver(&space).open(unit).unwrap();
        let (memory, copy) = (Buffer::filled(&space, 8, 1), Buffer::new(&space, 8));
        let pin = memory.pin(3..4);
        let there = || send(&file, Op::MigrateToDevice, memory.all(), copy.address());
        assert_eq!(there(), Err(Errno::NoEnt));
        assert_eq!(snapshot(&file, memory.at(3..4)), [see::WRITE]);
        drop(pin);
        assert_eq!(there(), done(8, 0));
        copy.check(0..8, 1);
    }
}
