//! Pins by the kernel's test: of pages on devices, and of memory that the space does not manage.

use super::world::{Buffer, alone, done, driver, send, snapshot, space};
use uhmm_dmirror::gup::{LONGTERM, LONGTERM_6_1, WRITE};
use uhmm_dmirror::snapshot as see;
use uhmm_dmirror::{Errno, Gup, Op};

const GUP_FAST: u64 = 1;
const PIN_FAST: u64 = 2;
const PIN_LONGTERM: u64 = 3;
const GUP_BASIC: u64 = 4;
const PIN_BASIC: u64 = 5;

/// Sends a test; returns how many bytes were got.
fn exec(gup: &Gup<'_>, test: u64, address: usize, size: usize, flags: u32) -> Result<u64, Errno> {
    exec_by(gup, test, address, size, 1, flags)
}

fn exec_by(
    gup: &Gup<'_>,
    test: u64,
    address: usize,
    size: usize,
    at_a_time: u32,
    flags: u32,
) -> Result<u64, Errno> {
    let mut given = [0x55; 80];
    given[16..24].copy_from_slice(&address.to_ne_bytes());
    given[24..32].copy_from_slice(&size.to_ne_bytes());
    given[32..36].copy_from_slice(&at_a_time.to_ne_bytes());
    given[36..40].copy_from_slice(&flags.to_ne_bytes());
    let mut bytes = given;
    let done = gup.ioctl(0xc050_6700 + test, &mut bytes);
    assert_eq!(bytes[16..24], given[16..24]);
    assert_eq!(bytes[32..], given[32..]);
    let field = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
    match done {
        Ok(()) => assert!(
            field(0) < 60_000_000 && field(8) < 60_000_000,
            "microseconds"
        ),
        Err(_) => assert_eq!(bytes, given, "nothing is written"),
    }
    done.map(|()| field(24))
}

#[test]
fn only_pins_for_long_bring_pages_home_that_the_cpu_reaches() {
    let _alone = alone();
    for unit in 0..4 {
        let space = space();
        let driver = driver(&space);
        let (file, gup) = (driver.open(unit).unwrap(), driver.open_gup().unwrap());
        let (memory, copy) = (Buffer::filled(&space, 8, 1), Buffer::new(&space, 8));
        assert_eq!(
            send(&file, Op::MigrateToDevice, memory.all(), copy.address()),
            done(8, 0)
        );
        let tests = [
            (GUP_BASIC, 0),
            (GUP_FAST, 0),
            (PIN_FAST, 0),
            (PIN_BASIC, 0),
            (PIN_FAST, LONGTERM),
            (PIN_FAST, LONGTERM_6_1),
            (PIN_LONGTERM, 0),
            (PIN_BASIC, LONGTERM),
        ];
        for (page, (test, flags)) in tests.into_iter().enumerate() {
            let at = memory.at(page..page + 1);
            assert_eq!(exec(&gup, test, at.start, 4096, WRITE | flags), Ok(4096));
        }
        let there = if unit < 2 {
            see::WRITE
        } else {
            see::COHERENT | see::WRITE
        };
        let is = snapshot(&file, memory.all());
        assert_eq!(is[..4], [there; 4]);
        assert_eq!(is[4..], [see::WRITE; 4]);
        memory.check(0..8, 1);
        let statistics = space.statistics();
        assert_eq!(statistics.pins_acquired, statistics.pins_released);
    }
}

#[test]
fn as_much_is_got_as_is_there() {
    let _alone = alone();
    let space = space();
    let gup = driver(&space).open_gup().unwrap();
    let memory = Buffer::filled(&space, 64, 1);
    memory.protect(40..41, uhmm::memory::Protection::READ);
    memory.unmap(50..51);
    for test in [GUP_BASIC, GUP_FAST, PIN_BASIC, PIN_FAST, PIN_LONGTERM] {
        for at_a_time in [1, 7, 64, 1000, u32::MAX] {
            let exec = |size, flags| exec_by(&gup, test, memory.address(), size, at_a_time, flags);
            assert_eq!(exec(64 * 4096, WRITE), Ok(40 * 4096));
            assert_eq!(exec(64 * 4096, 0), Ok(50 * 4096));
            assert_eq!(exec(10 * 4096 + 5, 0), Ok(10 * 4096));
            assert_eq!(exec(4095, 0), Ok(0));
        }
        assert_eq!(exec_by(&gup, test, memory.address(), 4096, 0, 0), Ok(0));
    }
    // A reference is not for long.
    assert_eq!(
        exec(&gup, GUP_BASIC, memory.address(), 4096, LONGTERM),
        Ok(0)
    );
    memory.check(0..40, 1);
    let statistics = space.statistics();
    assert_eq!(statistics.pins_acquired, statistics.pins_released);
}

#[test]
fn tests_that_make_no_sense_are_refused() {
    let _alone = alone();
    let space = space();
    let gup = driver(&space).open_gup().unwrap();
    let memory = Buffer::filled(&space, 1, 1);
    for test in [0, 6, 7, 8, 9, 1 << 8, u64::from(u32::MAX)] {
        assert_eq!(
            exec(&gup, test, memory.address(), 4096, 0),
            Err(Errno::Inval)
        );
    }
    for size in [1 << 47, usize::MAX, usize::MAX - memory.address() + 1] {
        assert_eq!(
            exec(&gup, PIN_BASIC, memory.address(), size, 0),
            Err(Errno::Inval)
        );
    }
}
