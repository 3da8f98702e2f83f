//! Commands that make no sense, and memory that is not to be had. (`send` sees to the out fields.)

use super::world::{Buffer, alone, bytes, done, driver, send, snapshot, space};
use uhmm::memory::Protection;
use uhmm_dmirror::snapshot as see;
use uhmm_dmirror::{Errno, File, Op};

const PAGES: usize = 16;

/// Sends numbers as they are.
fn send_raw(file: &File<'_>, request: u64, address: usize, pages: usize) -> Result<(), Errno> {
    let given = bytes(address, 0, pages);
    let mut bytes = given;
    let done = file.ioctl(request, &mut bytes);
    assert!(done.is_ok() || bytes == given, "nothing is written");
    done
}

#[test]
fn commands_that_make_no_sense_are_refused_and_change_nothing() {
    let _alone = alone();
    let space = space();
    let file = driver(&space).open(0).unwrap();
    let memory = Buffer::filled(&space, PAGES, 1);
    let at = memory.address();
    for n in 0..8 {
        let request = Op::Read.request() + n;
        for (address, pages) in [
            (at + 1, 1),
            (at + 2048, PAGES),
            (at, 0),
            (at, usize::MAX),
            (at, usize::MAX >> 12),
            (at, (1 << 35) - (at >> 12) + 1),
            (0usize.wrapping_sub(4096), 1),
            (1 << 47, 1),
        ] {
            let refused = send_raw(&file, request, address, pages);
            assert_eq!(refused, Err(Errno::Inval), "{n}: {address:#x}, {pages}");
        }
    }
    for request in [8, 255, 0x10_0000].map(|n| Op::Read.request() + n) {
        assert_eq!(send_raw(&file, request, at, 1), Err(Errno::Inval));
    }
    // Of another size, or of another driver.
    for request in [0, 0x4800, 0x8028_4800, 0xc020_4800, 0xc028_4700] {
        assert_eq!(send_raw(&file, request, at, 1), Err(Errno::Inval));
    }
    memory.check(0..PAGES, 1);
    assert_eq!(driver(&space).open(4).err(), Some(Errno::NoDev));
}

#[test]
fn memory_without_access_is_not_read() {
    let _alone = alone();
    for unit in [0, 2] {
        let space = space();
        let file = driver(&space).open(unit).unwrap();
        let (memory, copy) = (
            Buffer::filled(&space, PAGES, 1),
            Buffer::filled(&space, PAGES, 2),
        );
        memory.protect(0..PAGES, Protection::empty());
        let read = send(&file, Op::Read, memory.all(), copy.address());
        assert_eq!(read, Err(Errno::Fault));
        copy.check(0..PAGES, 2);
        memory.protect(0..PAGES, Protection::READ);
        memory.check(0..PAGES, 1);
        // Also where only the last page is not to be read.
        memory.protect(PAGES - 1..PAGES, Protection::empty());
        let read = send(&file, Op::Read, memory.all(), copy.address());
        assert_eq!(read, Err(Errno::Fault));
        copy.check(0..PAGES, 2);
        assert_eq!(
            send(&file, Op::Read, memory.at(0..4), copy.address()),
            done(4, 1)
        );
        copy.check(0..4, 1);
    }
}

#[test]
fn memory_that_is_only_read_is_not_written() {
    let _alone = alone();
    let space = space();
    let file = driver(&space).open(0).unwrap();
    let (memory, from) = (Buffer::new(&space, PAGES), Buffer::filled(&space, PAGES, 1));
    memory.protect(0..PAGES, Protection::READ);
    assert_eq!(
        send(&file, Op::Read, memory.at(0..1), from.address()),
        done(1, 1)
    );
    from.fill(0..1, 1);
    let write = || send(&file, Op::Write, memory.all(), from.address());
    assert_eq!(write(), Err(Errno::Perm));
    memory.check_zeros(0..PAGES);
    memory.protect(0..PAGES, Protection::READ.union(Protection::WRITE));
    assert_eq!(write(), done(PAGES, 1));
    memory.check(0..PAGES, 1);
}

#[test]
fn a_range_with_a_hole_or_without_access_does_not_migrate() {
    let _alone = alone();
    for unit in 0..4 {
        let space = space();
        let file = driver(&space).open(unit).unwrap();
        let (memory, copy) = (
            Buffer::filled(&space, PAGES, 1),
            Buffer::filled(&space, PAGES, 2),
        );
        let send = |op| send(&file, op, memory.all(), copy.address());
        memory.protect(3..4, Protection::empty());
        assert_eq!(send(Op::MigrateToDevice), Err(Errno::Inval));
        assert_eq!(send(Op::MigrateToSystem), Err(Errno::Inval));
        memory.unmap(3..4);
        assert_eq!(send(Op::MigrateToDevice), Err(Errno::Inval));
        assert_eq!(send(Op::MigrateToSystem), Err(Errno::Inval));
        copy.check(0..PAGES, 2);
        let is = snapshot(&file, memory.all());
        let expected = |page| if page == 3 { see::ERROR } else { see::WRITE };
        assert_eq!(is, (0..PAGES).map(expected).collect::<Vec<_>>());
        assert_eq!(send(Op::Read), Err(Errno::Fault));
        memory.check(0..3, 1);
        memory.check(4..PAGES, 1);
    }
}

/// The device has done its work, and has nowhere to say so.
#[test]
fn a_buffer_that_is_not_there_is_an_error() {
    let _alone = alone();
    let space = space();
    let file = driver(&space).open(0).unwrap();
    let memory = Buffer::filled(&space, PAGES, 1);
    for op in [Op::Read, Op::Write, Op::MigrateToDevice, Op::Snapshot] {
        for buffer in [0, 1 << 47, usize::MAX, usize::MAX - 4096] {
            assert_eq!(
                send(&file, op, memory.all(), buffer),
                Err(Errno::Fault),
                "{op:?}"
            );
        }
    }
    memory.check(0..PAGES, 1);
}
