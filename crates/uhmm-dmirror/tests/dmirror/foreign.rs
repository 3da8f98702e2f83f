//! Memory that cannot be managed, or is not yet: the device reads and writes it where it is.

use crate::dmirror::processes::Child;
use crate::dmirror::world::{
    ALL, Buffer, COHERENT, PRIVATE, alone, done, driver, send, snapshot, space,
};
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::thread;
use uhmm::memory::Protection;
use uhmm_dmirror::snapshot as see;
use uhmm_dmirror::{Errno, Op};

/// Maps something over pages of a buffer, in place of what is there.
fn map_over(buffer: &Buffer<'_>, pages: std::ops::Range<usize>, flags: i32, file: Option<&File>) {
    let range = buffer.at(pages);
    let (to, len) = (range.start as *mut c_void, range.len());
    let fd = file.map_or(-1, AsRawFd::as_raw_fd);
    let map = || {
        // SAFETY: over memory of the test's own, which nothing borrows.
        let found = unsafe {
            let all = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(to, len, all, flags | libc::MAP_FIXED, fd, 0)
        };
        match found {
            libc::MAP_FAILED => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: as above.
    unsafe { buffer.space().memory().around_unmap(range.start, len, map) }.unwrap();
}

const SHARED: i32 = libc::MAP_SHARED | libc::MAP_ANONYMOUS;

/// A file without a name, of so many pages.
fn file(pages: usize) -> File {
    let path = std::env::temp_dir().join(format!("dmirror-{}", std::process::id()));
    let file = File::create_new(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file.set_len(pages as u64 * 4096).unwrap();
    file
}

#[test]
fn shared_memory_is_read_and_written_and_stays() {
    let _alone = alone();
    for unit in [PRIVATE[0], COHERENT[0]] {
        let space = space();
        let driver = driver(&space);
        let (file, other) = (driver.open(unit).unwrap(), driver.open(unit).unwrap());
        let (memory, copy) = (Buffer::new(&space, 16), Buffer::filled(&space, 16, 1));
        map_over(&memory, 0..16, SHARED, None);
        let there = |file| send(file, Op::MigrateToDevice, memory.all(), copy.address());
        assert_eq!(there(&file), Err(Errno::NoEnt));
        assert_eq!(
            send(&file, Op::Write, memory.all(), copy.address()),
            done(16, 1)
        );
        memory.check(0..16, 1);
        memory.fill(0..16, 2);
        assert_eq!(
            send(&file, Op::Read, memory.all(), copy.address()),
            done(16, 0)
        );
        copy.check(0..16, 2);
        assert_eq!(snapshot(&file, memory.all()), [see::WRITE; 16]);
        // The device has them in its table: that is enough for it, and none has gone.
        assert_eq!(there(&file), done(16, 0));
        assert_eq!(there(&other), Err(Errno::NoEnt));
        assert_eq!(snapshot(&file, memory.all()), [see::WRITE; 16]);
        assert_eq!(
            send(&file, Op::Exclusive, memory.all(), copy.address()),
            Err(Errno::Busy)
        );
    }
}

/// What can go goes, and the rest stays; all of it is read.
#[test]
fn a_range_of_several_kinds_goes_in_part() {
    let _alone = alone();
    for unit in [PRIVATE[0], COHERENT[0]] {
        let space = space();
        let file = driver(&space).open(unit).unwrap();
        let (memory, copy) = (Buffer::filled(&space, 24, 1), Buffer::new(&space, 24));
        map_over(&memory, 8..12, SHARED, None);
        memory.fill(10..12, 1);
        memory.protect(20..24, Protection::READ);
        let there = || send(&file, Op::MigrateToDevice, memory.all(), copy.address());
        assert_eq!(there(), Err(Errno::NoEnt));
        let local = if PRIVATE.contains(&unit) {
            see::PRIVATE
        } else {
            see::COHERENT
        };
        let byte = |page| match page {
            8 | 9 => see::NONE,
            10 | 11 => see::WRITE,
            20.. => local | see::READ,
            _ => local | see::WRITE,
        };
        let expected: Vec<u8> = (0..24).map(byte).collect();
        assert_eq!(snapshot(&file, memory.all()), expected);
        assert_eq!(
            send(&file, Op::Read, memory.all(), copy.address()),
            done(24, 1)
        );
        copy.check(0..8, 1);
        copy.check_zeros(8..10);
        copy.check(10..24, 1);
        assert_eq!(there(), done(24, 0));
        let sent = send(&file, Op::Exclusive, memory.all(), copy.address());
        assert_eq!(sent, Err(Errno::Busy));
        assert!(send(&file, Op::MigrateToSystem, memory.all(), 0).is_ok());
        memory.check(0..8, 1);
        memory.check(12..24, 1);
    }
}

#[test]
fn the_device_writes_to_a_file() {
    let _alone = alone();
    let space = space();
    let device = driver(&space).open(0).unwrap();
    let (memory, copy) = (Buffer::new(&space, 8), Buffer::filled(&space, 8, 3));
    let file = file(8);
    map_over(&memory, 0..8, libc::MAP_SHARED, Some(&file));
    assert_eq!(
        send(&device, Op::Write, memory.all(), copy.address()),
        done(8, 1)
    );
    let mut found = vec![0; 8 * 4096];
    file.read_exact_at(&mut found, 0).unwrap();
    let other = Buffer::new(&space, 8);
    map_over(&other, 0..8, libc::MAP_PRIVATE, Some(&file));
    other.check(0..8, 3);
    // Its own copy of a page is the mapping's alone.
    other.fill(2..3, 4);
    assert_eq!(
        send(&device, Op::Read, other.all(), copy.address()),
        done(8, 1)
    );
    copy.check(0..2, 3);
    copy.check(2..3, 4);
    memory.check(0..8, 3);
    // Where the file ends, the memory does.
    file.set_len(4 * 4096).unwrap();
    let read = send(&device, Op::Read, memory.all(), copy.address());
    assert_eq!(read, Err(Errno::Fault));
    assert_eq!(
        send(&device, Op::Read, memory.at(0..4), copy.address()).err(),
        None
    );
}

/// What a program has written to its private mapping of a file is its own, and migrates while it has one
/// thread; among others it is used where it is.
#[test]
fn what_was_written_to_a_private_mapping_of_a_file_migrates() {
    let _alone = alone();
    for unit in [PRIVATE[0], COHERENT[0]] {
        let space = space();
        let driver = driver(&space);
        let (memory, copy) = (Buffer::new(&space, 8), Buffer::new(&space, 8));
        let file = file(8);
        map_over(&memory, 0..8, libc::MAP_PRIVATE, Some(&file));
        memory.fill(0..8, 1);
        let migrate = |device: &_| send(device, Op::MigrateToDevice, memory.all(), copy.address());
        let device = driver.open(unit).unwrap();
        assert_eq!(migrate(&device), Err(Errno::NoEnt));
        let read = || send(&device, Op::Read, memory.all(), copy.address());
        assert_eq!(read(), done(8, 1));
        copy.check(0..8, 1);
        assert_eq!(snapshot(&device, memory.all()), [see::WRITE; 8]);
        // The child of a fork has one thread.
        let child = Child::run(|| {
            let device = driver.open(unit).unwrap();
            copy.fill(0..8, 2);
            assert_eq!(migrate(&device), done(8, 0));
            copy.check(0..8, 1);
            let is = snapshot(&device, memory.all());
            assert!(
                is.iter()
                    .all(|byte| byte & (see::PRIVATE | see::COHERENT) != 0)
            );
            memory.check(0..8, 1);
        });
        child.ends_well();
        memory.check(0..8, 1);
        let mut found = vec![0; 8 * 4096];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found.iter().all(|byte| *byte == 0), "the file is as it was");
    }
}

/// A system call that nobody has told the space of: an error, and nobody is killed.
#[test]
fn memory_that_goes_unseen_is_an_error() {
    let _alone = alone();
    let space = space();
    let file = driver(&space).open(0).unwrap();
    let (memory, copy) = (Buffer::filled(&space, 8, 1), Buffer::filled(&space, 8, 2));
    assert_eq!(
        send(&file, Op::Read, memory.all(), copy.address()),
        done(8, 1)
    );
    copy.fill(0..8, 2);
    let gone = memory.at(4..5);
    // SAFETY: nothing borrows it.
    let unmapped = unsafe { libc::munmap(gone.start as *mut c_void, gone.len()) };
    assert_eq!(unmapped, 0);
    for op in [Op::Read, Op::Write] {
        let refused = send(&file, op, memory.all(), copy.address());
        assert_eq!(refused, Err(Errno::Fault));
    }
    assert_eq!(snapshot(&file, memory.at(4..5)), [see::ERROR]);
    copy.check(0..8, 2);
    let there = send(&file, Op::MigrateToDevice, memory.all(), copy.address());
    assert_eq!(there, Err(Errno::Inval));
}

/// Reads of memory that is unmapped meanwhile: an error, or the right bytes.
#[test]
fn memory_is_unmapped_under_the_device() {
    let _alone = alone();
    for unit in [PRIVATE[0], COHERENT[0]] {
        let space = space();
        let driver = driver(&space);
        for round in 0..60 {
            let file = driver.open(unit).unwrap();
            let (memory, copy) = (
                Buffer::filled(&space, 256, 1),
                Buffer::filled(&space, 256, 2),
            );
            if round % 2 == 0 {
                let there = send(&file, Op::MigrateToDevice, memory.all(), copy.address());
                assert_eq!(there, done(256, 0));
                copy.fill(0..256, 2);
            }
            thread::scope(|scope| {
                scope.spawn(|| {
                    (0..round * 50).for_each(|_| std::hint::spin_loop());
                    memory.unmap(128..256);
                });
                match send(&file, Op::Read, memory.all(), copy.address()) {
                    Ok(reply) => {
                        assert_eq!(reply.pages, 256);
                        copy.check(0..256, 1);
                    }
                    Err(error) => {
                        assert_eq!(error, Errno::Fault);
                        copy.check(0..256, 2);
                    }
                }
            });
            memory.check(0..128, 1);
        }
    }
}

/// Pins fault in what the space does not manage.
#[test]
fn a_pin_brings_memory_that_nobody_manages() {
    let _alone = alone();
    let space = space();
    let driver = driver(&space);
    let (file, gup) = (driver.open(0).unwrap(), driver.open_gup().unwrap());
    let memory = Buffer::new(&space, 8);
    map_over(&memory, 4..8, SHARED, None);
    memory.protect(7..8, Protection::READ);
    for (test, write, got) in [(4, 0, 8), (1, 1, 7), (5, 1, 7), (2, 0x101, 7), (3, 1, 7)] {
        memory.discard(0..4);
        let mut bytes = [0; 80];
        bytes[16..24].copy_from_slice(&memory.address().to_ne_bytes());
        bytes[24..32].copy_from_slice(&(8_usize * 4096).to_ne_bytes());
        bytes[32..36].copy_from_slice(&3_u32.to_ne_bytes());
        bytes[36..40].copy_from_slice(&u32::to_ne_bytes(write));
        gup.ioctl(0xc050_6700 + test, &mut bytes).unwrap();
        let size = u64::from_ne_bytes(bytes[24..32].try_into().unwrap());
        assert_eq!(size, got * 4096, "test {test}");
        let is = snapshot(&file, memory.at(0..4));
        let zeros = see::READ | see::ZERO;
        let expected = if write == 0 { zeros } else { see::WRITE };
        assert_eq!(is, [expected; 4], "test {test}");
    }
    memory.protect(7..8, ALL);
}
