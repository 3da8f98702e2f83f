//! Pages that are write-protected so that the first write to each is told: what keeps the
//! protection, what ends it, and who waits for what.

use crate::common::{
    PAGE, Sleeper, all, alone, assert_asleep, child, comes, data, next, pages, range, read,
    register, stopped, wait, write,
};
use linux_raw_sys::general::{UFFD_FEATURE_MOVE, UFFD_FEATURE_PAGEFAULT_FLAG_WP};
use rustix::io::Errno;
use rustix::mm::{Advice, MprotectFlags, madvise};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::thread;
use uhmm_linux::abi::pagemap;
use uhmm_linux::abi::uffd::{Event, Uffd};
use uhmm_linux::mapping::Mapping;

/// A range registered for both kinds of fault, whose first pages hold 1 to `count`, protected.
fn tracked(count: u8) -> (Uffd, Mapping) {
    let map = pages(8);
    let features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_MOVE;
    let uffd = Uffd::open(features.into()).unwrap();
    uffd.register(range(&map, 0, 8), true).unwrap();
    if count > 0 {
        let copied = uffd.copy_write_protected(&data(1, count), map.address());
        assert_eq!(copied, all(count.into()));
    }
    (uffd, map)
}

fn write_to_protected(map: &Mapping, page: usize) -> Event {
    Event::PageFault {
        address: range(map, page, 1).start,
        write: true,
        write_protected: true,
        minor: false,
    }
}

/// Writes to a page, and checks that nobody is told.
fn write_freely(uffd: &Uffd, map: &Mapping, page: usize, byte: u8) {
    thread::scope(|scope| {
        let writer = scope.spawn(|| write(map, page, byte));
        while !writer.is_finished() {
            if comes(uffd, 5) {
                let told = next(uffd);
                // Or the writer never ends, and nobody hears of it.
                uffd.write_protect(range(map, page, 1), false).unwrap();
                panic!("{told:?}");
            }
        }
    });
    assert_eq!(read(map, page), byte);
}

/// Writes to a protected page, checks that this is told, and lets the writer on.
fn write_told(uffd: &Uffd, map: &Mapping, page: usize, byte: u8) {
    thread::scope(|scope| {
        let writer = scope.spawn(|| write(map, page, byte));
        assert_eq!(next(uffd), write_to_protected(map, page));
        assert_asleep(uffd, &writer);
        uffd.write_protect(range(map, page, 1), false).unwrap();
    });
    assert_eq!(read(map, page), byte);
}

#[test]
fn a_protected_copy_tells_of_the_first_write_only() {
    let _alone = alone();
    let (uffd, map) = tracked(3);
    assert_eq!([0, 1, 2].map(|page| read(&map, page)), [1, 2, 3]);
    assert!(!comes(&uffd, 0), "reads are not told");
    write_told(&uffd, &map, 1, 9);
    write_freely(&uffd, &map, 1, 10);
    write_told(&uffd, &map, 0, 11);
    assert_eq!(read(&map, 2), 3);
}

#[test]
fn a_protected_copy_needs_a_range_registered_for_it() {
    let _alone = alone();
    let (uffd, _map) = tracked(1);
    let plain = pages(1);
    register(&uffd, &plain);
    assert_eq!(
        uffd.copy_write_protected(&data(1, 1), plain.address()),
        stopped(0, Errno::INVAL)
    );
    assert_eq!(uffd.copy(&data(1, 1), plain.address()), all(1));
}

#[test]
fn system_calls_that_write_are_told_too() {
    let _alone = alone();
    let (uffd, map) = tracked(1);
    let file = std::fs::File::open("/dev/zero").unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            // SAFETY: within the mapping, whose bytes nobody else has a reference to.
            let page = unsafe { std::slice::from_raw_parts_mut(map.at(0), PAGE) };
            file.read_at(page, 0).unwrap()
        });
        assert_eq!(next(&uffd), write_to_protected(&map, 0));
        uffd.write_protect(range(&map, 0, 1), false).unwrap();
        assert_eq!(reader.join().unwrap(), PAGE);
    });
    assert_eq!(read(&map, 0), 0);
}

#[test]
fn a_move_ends_the_protection() {
    let _alone = alone();
    let (uffd, map) = tracked(4);
    let slots = pages(4);
    register(&uffd, &slots);
    let at = |page| range(&map, page, 1).start;
    assert_eq!(uffd.move_pages(at(0), at(5), PAGE), all(1));
    write_freely(&uffd, &map, 5, 20);
    assert_eq!(uffd.move_pages(at(1), slots.address(), 2 * PAGE), all(2));
    assert_eq!((read(&slots, 0), read(&slots, 1)), (2, 3));
    write_freely(&uffd, &slots, 0, 21);
    assert_eq!(uffd.move_pages(slots.address(), at(1), 2 * PAGE), all(2));
    write_freely(&uffd, &map, 1, 22);
    write_freely(&uffd, &map, 2, 23);
    assert_eq!(read(&map, 3), 4);
    write_told(&uffd, &map, 3, 24);
}

#[test]
fn a_change_of_the_programs_protection_keeps_it() {
    let _alone = alone();
    let (uffd, map) = tracked(4);
    let writable = MprotectFlags::READ | MprotectFlags::WRITE;
    map.protect(0, 2 * PAGE, MprotectFlags::empty()).unwrap();
    let mut page = [0; PAGE];
    let memory = std::fs::File::open("/proc/self/mem").unwrap();
    memory
        .read_exact_at(&mut page, map.address() as u64)
        .unwrap();
    assert_eq!(page, [1; PAGE]);
    map.protect(0, 2 * PAGE, writable).unwrap();
    write_told(&uffd, &map, 0, 9);
    map.protect(PAGE, PAGE, MprotectFlags::READ).unwrap();
    map.protect(PAGE, PAGE, writable).unwrap();
    write_told(&uffd, &map, 1, 9);
    // And in a range that is not writable yet.
    map.protect(4 * PAGE, PAGE, MprotectFlags::READ).unwrap();
    let fifth = range(&map, 4, 1).start;
    assert_eq!(uffd.copy_write_protected(&data(5, 1), fifth), all(1));
    map.protect(4 * PAGE, PAGE, writable).unwrap();
    write_told(&uffd, &map, 4, 9);
}

fn populate(map: &Mapping, page: usize) -> rustix::io::Result<()> {
    // SAFETY: within the mapping; populating changes no bytes.
    unsafe { madvise(map.at(page * PAGE).cast(), PAGE, Advice::LinuxPopulateWrite) }
}

#[test]
fn populating_for_writing_is_a_write() {
    let _alone = alone();
    let (uffd, map) = tracked(2);
    thread::scope(|scope| {
        let populating = scope.spawn(|| populate(&map, 0));
        assert_eq!(next(&uffd), write_to_protected(&map, 0));
        assert_asleep(&uffd, &populating);
        uffd.write_protect(range(&map, 0, 1), false).unwrap();
        assert_eq!(populating.join().unwrap(), Ok(()));
    });
    assert_eq!(read(&map, 0), 1);
    // Where the program may not write, it fails before it comes to the page.
    map.protect(PAGE, PAGE, MprotectFlags::READ).unwrap();
    assert_eq!(populate(&map, 1), Err(Errno::INVAL));
    assert!(!comes(&uffd, 0));
}

#[test]
fn a_child_writes_unseen_and_the_parent_stays_protected() {
    let _alone = alone();
    let (uffd, map) = tracked(3);
    let status = wait(child(|| {
        write(&map, 0, 50);
        write(&map, 3, 51);
        (read(&map, 0) + read(&map, 1) + read(&map, 3)).into()
    }));
    assert!(libc::WIFEXITED(status), "{status:#x}");
    assert_eq!(libc::WEXITSTATUS(status), 50 + 2 + 51);
    assert!(!comes(&uffd, 0));
    assert_eq!(read(&map, 0), 1);
    let sleeper = Sleeper::new();
    write_told(&uffd, &map, 0, 9);
    // Shared and protected: the protection has to end before the sharing can.
    let (second, room) = (range(&map, 1, 1), range(&map, 6, 1).start);
    let move_second = || uffd.move_pages(second.start, room, PAGE);
    assert_eq!(move_second(), stopped(0, Errno::BUSY));
    uffd.write_protect(second.clone(), false).unwrap();
    assert_eq!(move_second(), stopped(0, Errno::BUSY));
    populate(&map, 1).unwrap();
    assert_eq!(move_second(), all(1));
    drop(sleeper);
    assert_eq!((read(&map, 6), read(&map, 2)), (2, 3));
    write_told(&uffd, &map, 2, 9);
}

/// How many pages of `map` from `first` on nobody else maps.
fn alone_at(map: &Mapping, first: usize) -> usize {
    let file = std::fs::File::open("/proc/self/pagemap").unwrap();
    pagemap::mapped_here_alone(file.as_fd(), range(map, first, 1).start, 8 - first).unwrap()
}

/// What is present can be protected, whatever way it came; and of a page that a fork has shared it can be
/// told whether anybody else still maps it.
#[test]
fn a_page_that_a_fork_has_shared_is_told_from_one_that_is_ours_alone() {
    let _alone = alone();
    let (uffd, map) = tracked(0);
    let slots = pages(4);
    register(&uffd, &slots);
    assert_eq!(uffd.copy(&data(1, 4), slots.address()), all(4));
    let first = range(&map, 0, 1).start;
    assert_eq!(uffd.move_pages(slots.address(), first, 4 * PAGE), all(4));
    // The fifth is missing: nothing is protected there.
    uffd.write_protect(range(&map, 0, 5), true).unwrap();
    assert_eq!(alone_at(&map, 0), 4);
    let sleeper = Sleeper::new();
    assert_eq!(alone_at(&map, 0), 0);
    assert_eq!(read(&map, 0), 1);
    // To a copy; the others are shared still.
    write_told(&uffd, &map, 0, 9);
    assert_eq!((alone_at(&map, 0), alone_at(&map, 1)), (1, 0));
    drop(sleeper);
    assert_eq!(alone_at(&map, 0), 4);
    assert_eq!(uffd.copy(&data(5, 1), range(&map, 4, 1).start), all(1));
    write_freely(&uffd, &map, 4, 10);
    (1..4).for_each(|page| write_told(&uffd, &map, page, 11));
}

#[test]
fn protecting_needs_a_range_registered_for_it() {
    let _alone = alone();
    let (uffd, _map) = tracked(1);
    let plain = pages(1);
    register(&uffd, &plain);
    let protect = uffd.write_protect(range(&plain, 0, 1), true);
    assert_eq!(protect, Err(Errno::NOENT));
}

/// Who waits to write to a page that goes away goes on waiting: nobody tells of it again.
#[test]
fn a_writer_sleeps_on_when_its_page_leaves() {
    let _alone = alone();
    let (uffd, map) = tracked(2);
    let slots = pages(1);
    register(&uffd, &slots);
    thread::scope(|scope| {
        let writer = scope.spawn(|| write(&map, 0, 9));
        assert_eq!(next(&uffd), write_to_protected(&map, 0));
        assert_eq!(
            uffd.move_pages(map.address(), slots.address(), PAGE),
            all(1)
        );
        assert_asleep(&uffd, &writer);
        // Moving it back wakes who waits for the place.
        assert_eq!(
            uffd.move_pages(slots.address(), map.address(), PAGE),
            all(1)
        );
    });
    assert_eq!(read(&map, 0), 9);
    thread::scope(|scope| {
        let writer = scope.spawn(|| write(&map, 1, 9));
        assert_eq!(next(&uffd), write_to_protected(&map, 1));
        map.discard(PAGE, PAGE);
        assert_asleep(&uffd, &writer);
        uffd.wake(range(&map, 1, 1)).unwrap();
        let missing = Event::PageFault {
            address: range(&map, 1, 1).start,
            write: true,
            write_protected: false,
            minor: false,
        };
        assert_eq!(next(&uffd), missing, "a fault of the other kind");
        assert_eq!(uffd.copy(&data(0, 1), range(&map, 1, 1).start), all(1));
    });
    assert_eq!(read(&map, 1), 9);
}

#[test]
fn ending_the_protection_of_what_has_none_is_no_error() {
    let _alone = alone();
    let (uffd, map) = tracked(1);
    uffd.write_protect(range(&map, 0, 1), false).unwrap();
    uffd.write_protect(range(&map, 0, 1), false).unwrap();
    uffd.write_protect(range(&map, 5, 1), false).unwrap();
    write_freely(&uffd, &map, 0, 9);
    let elsewhere = pages(1);
    assert_eq!(
        uffd.write_protect(range(&elsewhere, 0, 1), false),
        Err(Errno::NOENT)
    );
}
