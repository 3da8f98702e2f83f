//! How often the device has to fault pages in: rounds, not pages; and what its table does not know any
//! more when something has happened to the pages.

use super::world::{ALL, Buffer, alone, done, driver, send, space};
use uhmm::memory::Protection;
use uhmm_dmirror::Op;

const PAGES: usize = 1100;

#[test]
fn a_second_read_takes_no_fault_until_something_happens() {
    let _alone = alone();
    let space = space();
    let driver = driver(&space);
    let (file, other) = (driver.open(0).unwrap(), driver.open(2).unwrap());
    let (memory, copy) = (Buffer::filled(&space, PAGES, 1), Buffer::new(&space, PAGES));
    let read = |faults| {
        copy.fill(0..PAGES, 9);
        let read = send(&file, Op::Read, memory.all(), copy.address());
        assert_eq!(read, done(PAGES, faults));
        copy.check(0..PAGES, 1);
    };
    read(1);
    read(0);
    // Neither the program's reads and writes are told, nor what another device reads.
    memory.check(0..PAGES, 1);
    memory.fill(0..PAGES, 1);
    assert_eq!(
        send(&other, Op::Read, memory.all(), copy.address()),
        done(PAGES, 1)
    );
    read(0);
    // A single page, whichever, is one round.
    for page in [0, 511, 512, PAGES - 1] {
        memory.protect(page..page + 1, Protection::READ);
        memory.protect(page..page + 1, ALL);
        read(1);
        read(0);
    }
    // And so are several, wherever they are.
    for page in (0..PAGES).step_by(100) {
        let there = send(
            &other,
            Op::MigrateToDevice,
            memory.at(page..page + 1),
            copy.address(),
        );
        assert_eq!(there, done(1, 0));
    }
    read(1);
    read(0);
    assert!(send(&other, Op::MigrateToSystem, memory.all(), 0).is_ok());
    read(1);
    read(0);
}

#[test]
fn what_may_be_read_is_faulted_in_again_to_be_written() {
    let _alone = alone();
    let space = space();
    let file = driver(&space).open(0).unwrap();
    let (memory, copy) = (
        Buffer::filled(&space, PAGES, 1),
        Buffer::filled(&space, PAGES, 2),
    );
    memory.protect(0..PAGES, Protection::READ);
    assert_eq!(
        send(&file, Op::Read, memory.all(), copy.address()),
        done(PAGES, 1)
    );
    memory.protect(0..PAGES, ALL);
    copy.fill(0..PAGES, 2);
    assert_eq!(
        send(&file, Op::Write, memory.all(), copy.address()),
        done(PAGES, 1)
    );
    assert_eq!(
        send(&file, Op::Write, memory.all(), copy.address()),
        done(PAGES, 0)
    );
    assert_eq!(
        send(&file, Op::Read, memory.all(), copy.address()),
        done(PAGES, 0)
    );
    memory.check(0..PAGES, 2);
}

/// The device sees what the program writes after it has mapped the page, and the other way round.
#[test]
fn a_mapped_page_is_the_programs_page() {
    let _alone = alone();
    for unit in [0, 2] {
        let space = space();
        let file = driver(&space).open(unit).unwrap();
        let (memory, copy) = (Buffer::filled(&space, 8, 1), Buffer::new(&space, 8));
        assert_eq!(
            send(&file, Op::Read, memory.all(), copy.address()),
            done(8, 1)
        );
        for version in 2..6 {
            memory.fill(0..8, version);
            assert_eq!(
                send(&file, Op::Read, memory.all(), copy.address()),
                done(8, 0)
            );
            copy.check(0..8, version);
            copy.fill(0..8, version + 100);
            assert_eq!(
                send(&file, Op::Write, memory.all(), copy.address()),
                done(8, 0)
            );
            memory.check(0..8, version + 100);
        }
    }
}

/// Dropped contents are not read from a table that remembers them.
#[test]
fn what_is_gone_is_gone_for_the_device() {
    let _alone = alone();
    let space = space();
    let file = driver(&space).open(0).unwrap();
    let (memory, copy) = (Buffer::filled(&space, 32, 1), Buffer::new(&space, 32));
    for on_the_device in [false, true] {
        memory.fill(0..32, 1);
        if on_the_device {
            assert!(send(&file, Op::MigrateToDevice, memory.all(), copy.address()).is_ok());
        } else {
            assert!(send(&file, Op::Read, memory.all(), copy.address()).is_ok());
        }
        memory.discard(8..16);
        assert_eq!(
            send(&file, Op::Read, memory.all(), copy.address()),
            done(32, 1)
        );
        copy.check(0..8, 1);
        copy.check_zeros(8..16);
        copy.check(16..32, 1);
    }
}
