//! Each command on its ordinary path, on each type of memory.

use super::world::{Buffer, COHERENT, PRIVATE, alone, done, driver, send, snapshot, space};
use uhmm::memory::Protection;
use uhmm_dmirror::snapshot as see;
use uhmm_dmirror::{Errno, Op};

const PAGES: usize = 1024;

fn local(unit: usize) -> u8 {
    if PRIVATE.contains(&unit) {
        see::PRIVATE | see::WRITE
    } else {
        see::COHERENT | see::WRITE
    }
}

#[test]
fn the_device_reads_memory() {
    let _alone = alone();
    let space = space();
    let file = driver(&space).open(0).unwrap();
    let (memory, copy) = (Buffer::filled(&space, PAGES, 1), Buffer::new(&space, PAGES));
    memory.protect(0..PAGES, Protection::READ);
    assert_eq!(
        send(&file, Op::Read, memory.all(), copy.address()),
        done(PAGES, 1)
    );
    copy.check(0..PAGES, 1);
    // What was never touched reads as zeros.
    let fresh = Buffer::new(&space, PAGES);
    assert_eq!(
        send(&file, Op::Read, fresh.all(), copy.address()),
        done(PAGES, 1)
    );
    copy.check_zeros(0..PAGES);
}

#[test]
fn the_device_writes_memory() {
    let _alone = alone();
    let space = space();
    let file = driver(&space).open(0).unwrap();
    let (memory, from) = (Buffer::new(&space, PAGES), Buffer::filled(&space, PAGES, 1));
    assert_eq!(
        send(&file, Op::Write, memory.all(), from.address()),
        done(PAGES, 1)
    );
    memory.check(0..PAGES, 1);
    from.check(0..PAGES, 1);
}

#[test]
fn pages_go_to_the_device_and_come_back() {
    let _alone = alone();
    for unit in 0..4 {
        let space = space();
        let driver = driver(&space);
        let file = driver.open(unit).unwrap();
        let (memory, copy) = (Buffer::filled(&space, PAGES, 1), Buffer::new(&space, PAGES));
        let there = send(&file, Op::MigrateToDevice, memory.all(), copy.address());
        assert_eq!(there, done(PAGES, 0));
        copy.check(0..PAGES, 1);
        assert_eq!(snapshot(&file, memory.all()), vec![local(unit); PAGES]);
        let usage = space.usage(memory.address(), PAGES * 4096).unwrap();
        let device = driver.id(unit).unwrap();
        assert_eq!(usage.devices[usize::from(device.0)], PAGES);
        // The device writes where they are now.
        copy.fill(0..PAGES, 2);
        assert_eq!(
            send(&file, Op::Write, memory.all(), copy.address()),
            done(PAGES, 0)
        );
        assert_eq!(snapshot(&file, memory.all()), vec![local(unit); PAGES]);
        let back = send(&file, Op::MigrateToSystem, memory.all(), 0);
        assert_eq!(back, done(PAGES, 0));
        assert_eq!(snapshot(&file, memory.all()), vec![see::WRITE; PAGES]);
        memory.check(0..PAGES, 2);
        // There is nothing left to bring.
        assert_eq!(
            send(&file, Op::MigrateToSystem, memory.all(), 0),
            done(0, 0)
        );
    }
}

#[test]
fn a_touch_brings_pages_home_from_where_the_cpu_does_not_reach() {
    let _alone = alone();
    for unit in 0..4 {
        let space = space();
        let file = driver(&space).open(unit).unwrap();
        let (memory, copy) = (Buffer::filled(&space, PAGES, 1), Buffer::new(&space, PAGES));
        for _ in 0..3 {
            let there = send(&file, Op::MigrateToDevice, memory.all(), copy.address());
            assert_eq!(there, done(PAGES, 0));
            copy.check(0..PAGES, 1);
            // Half of it comes home, or is used where it is; then the mixture goes.
            memory.check(0..PAGES / 2, 1);
            memory.fill(0..PAGES / 4, 1);
            let is = snapshot(&file, memory.all());
            let touched = if PRIVATE.contains(&unit) {
                see::WRITE
            } else {
                local(unit)
            };
            assert_eq!(is[..PAGES / 4], [touched; PAGES / 4]);
            // Around what is touched, more may come along.
            assert_eq!(is[3 * PAGES / 4..], [local(unit); PAGES / 4]);
        }
        memory.check(0..PAGES, 1);
    }
}

#[test]
fn pages_that_were_never_touched_and_pages_that_are_only_read_migrate() {
    let _alone = alone();
    for unit in [PRIVATE[1], COHERENT[1]] {
        let space = space();
        let file = driver(&space).open(unit).unwrap();
        let (memory, copy) = (Buffer::new(&space, 64), Buffer::filled(&space, 64, 9));
        memory.fill(32..64, 1);
        memory.protect(16..48, Protection::READ);
        let there = send(&file, Op::MigrateToDevice, memory.all(), copy.address());
        assert_eq!(there, done(64, 0));
        copy.check_zeros(0..32);
        copy.check(32..64, 1);
        let is = snapshot(&file, memory.all());
        let read_only = local(unit) & !see::WRITE | see::READ;
        assert_eq!(is[..16], [local(unit); 16]);
        assert_eq!(is[16..48], [read_only; 32]);
        memory.check_zeros(0..32);
        memory.check(32..64, 1);
    }
}

/// An aligned block of 2 MiB is one block on the device.
#[test]
fn what_is_huge_stays_in_one_piece() {
    let _alone = alone();
    for unit in [PRIVATE[0], COHERENT[0]] {
        let space = space();
        let driver = driver(&space);
        let (file, device) = (driver.open(unit).unwrap(), driver.id(unit).unwrap());
        let (memory, copy) = (Buffer::filled(&space, 1536, 1), Buffer::new(&space, 1536));
        assert!(memory.address().is_multiple_of(512 * 4096));
        // One page comes first, so that blocks have to be looked for.
        let first = memory.at(1000..1001);
        assert_eq!(
            send(&file, Op::MigrateToDevice, first, copy.address()),
            done(1, 0)
        );
        for block in [0..512, 1024..1536] {
            let there = send(
                &file,
                Op::MigrateToDevice,
                memory.at(block.clone()),
                copy.address(),
            );
            assert_eq!(there, done(512, 0));
            // SAFETY: nothing touches the block while the view is looked at.
            let view = unsafe { space.view(memory.at(block).start, 512 * 4096, device) };
            let pages = view.unwrap().pages().unwrap();
            assert_eq!(pages[0].0 % 512, 0);
            assert!(pages.windows(2).all(|pair| pair[0].plus(1) == pair[1]));
        }
        memory.check(0..1536, 1);
    }
}

#[test]
fn pages_are_the_devices_alone_until_somebody_touches_them() {
    let _alone = alone();
    for unit in [PRIVATE[0], COHERENT[0]] {
        let space = space();
        let file = driver(&space).open(unit).unwrap();
        let (memory, copy) = (Buffer::filled(&space, PAGES, 1), Buffer::new(&space, PAGES));
        let taken = send(&file, Op::Exclusive, memory.all(), copy.address());
        assert_eq!(taken, done(PAGES, 0));
        copy.check(0..PAGES, 1);
        assert_eq!(
            send(&file, Op::CheckExclusive, memory.all(), 0),
            Err(Errno::Perm)
        );
        // The device goes on reading them, and has them still.
        copy.fill(0..PAGES, 7);
        assert_eq!(
            send(&file, Op::Read, memory.all(), copy.address()),
            done(PAGES, 0)
        );
        copy.check(0..PAGES, 1);
        assert_eq!(
            send(&file, Op::CheckExclusive, memory.at(5..6), 0),
            Err(Errno::Perm)
        );
        memory.fill(0..PAGES - 1, 2);
        assert_eq!(
            send(&file, Op::CheckExclusive, memory.all(), 0),
            Err(Errno::Perm)
        );
        assert_eq!(
            send(&file, Op::CheckExclusive, memory.at(0..PAGES - 1), 0),
            done(0, 0)
        );
        memory.fill(PAGES - 1..PAGES, 2);
        assert_eq!(send(&file, Op::CheckExclusive, memory.all(), 0), done(0, 0));
        memory.check(0..PAGES, 2);
    }
}

/// A write of the device's own is no atomic operation: it wants the page as any other.
#[test]
fn a_write_of_the_device_ends_what_it_has_alone() {
    let _alone = alone();
    let space = space();
    let file = driver(&space).open(0).unwrap();
    let (memory, copy) = (Buffer::filled(&space, 8, 1), Buffer::filled(&space, 8, 2));
    assert!(send(&file, Op::Exclusive, memory.all(), copy.address()).is_ok());
    copy.fill(0..8, 2);
    assert_eq!(
        send(&file, Op::Write, memory.all(), copy.address()),
        done(8, 1)
    );
    assert_eq!(send(&file, Op::CheckExclusive, memory.all(), 0), done(0, 0));
    memory.check(0..8, 2);
    // And a change of protection does.
    assert!(send(&file, Op::Exclusive, memory.all(), copy.address()).is_ok());
    memory.protect(0..8, Protection::READ);
    assert_eq!(send(&file, Op::CheckExclusive, memory.all(), 0), done(0, 0));
    assert_eq!(
        send(&file, Op::Write, memory.all(), copy.address()),
        Err(Errno::Perm)
    );
    memory.check(0..8, 2);
}

#[test]
fn a_release_brings_everything_home() {
    let _alone = alone();
    for unit in 0..4 {
        let space = space();
        let file = driver(&space).open(unit).unwrap();
        let (memory, copy) = (Buffer::filled(&space, PAGES, 1), Buffer::new(&space, PAGES));
        for _ in 0..3 {
            let there = send(&file, Op::MigrateToDevice, memory.all(), copy.address());
            assert_eq!(there, done(PAGES, 0));
            assert_eq!(send(&file, Op::Release, memory.all(), 0), done(0, 0));
            assert_eq!(snapshot(&file, memory.all()), vec![see::WRITE; PAGES]);
            memory.check(0..PAGES, 1);
        }
    }
}

/// Reading and writing by way of managed memory that is itself on a device.
#[test]
fn the_buffer_may_be_anywhere() {
    let _alone = alone();
    for unit in 0..4 {
        let space = space();
        let driver = driver(&space);
        let file = driver.open(unit).unwrap();
        let (memory, copy) = (Buffer::filled(&space, 64, 1), Buffer::new(&space, 64));
        let other = driver.id((unit + 1) % 4).unwrap();
        for version in 2..5 {
            copy.migrate(other);
            let there = send(&file, Op::MigrateToDevice, memory.all(), copy.address());
            assert_eq!(there, done(64, 0));
            copy.check(0..64, version - 1);
            copy.fill(0..64, version);
            copy.migrate(other);
            assert_eq!(
                send(&file, Op::Write, memory.all(), copy.address()),
                done(64, 0)
            );
            memory.check(0..64, version);
            // Onto itself.
            assert!(send(&file, Op::Read, memory.all(), memory.address()).is_ok());
            memory.check(0..64, version);
        }
    }
}
