//! Every call of `abi::uffd` on a real userfaultfd: what it does, how far it comes, and why it stops.

mod arena;
mod common;
mod events;
mod moves;
mod proc_files;
mod tracking;

use common::{
    PAGE, all, alone, child, data, next, pages, range, read, registered, stopped, wait, write,
};
use linux_raw_sys::general::*;
use rustix::io::Errno;
use std::os::fd::AsRawFd;
use std::thread;
use uhmm_linux::abi::pagemap;
use uhmm_linux::abi::uffd::{Event, OpenError, Uffd};
use uhmm_linux::mapping::Mapping;
use uhmm_linux::mmu::SetupError;

#[test]
fn copy_stops_at_what_is_there() {
    let _alone = alone();
    let map = pages(8);
    let uffd = registered(&map, 0);
    assert_eq!(uffd.copy(&data(3, 1), range(&map, 2, 1).start), all(1));
    // Partial progress is EAGAIN with a count; the next call says what is in the way.
    let rest = data(1, 4);
    assert_eq!(uffd.copy(&rest, map.address()), stopped(2, Errno::AGAIN));
    let third = range(&map, 2, 1).start;
    assert_eq!(
        uffd.copy(&rest[2 * PAGE..], third),
        stopped(0, Errno::EXIST)
    );
    assert_eq!(uffd.copy(&rest[3 * PAGE..], third + PAGE), all(1));
    assert_eq!([0, 1, 2, 3].map(|page| read(&map, page)), [1, 2, 3, 4]);
}

#[test]
fn copy_to_a_range_that_is_not_registered_fails() {
    let _alone = alone();
    let (map, other) = (pages(2), pages(2));
    let uffd = registered(&map, 0);
    assert_eq!(
        uffd.copy(&data(1, 1), other.address()),
        stopped(0, Errno::NOENT)
    );
    uffd.unregister(range(&map, 0, 2)).unwrap();
    assert_eq!(
        uffd.copy(&data(1, 1), map.address()),
        stopped(0, Errno::NOENT)
    );
}

#[test]
fn zeropage_maps_the_page_of_zeros() {
    let _alone = alone();
    let map = pages(4);
    let uffd = registered(&map, 0);
    assert_eq!(uffd.copy(&data(1, 1), range(&map, 2, 1).start), all(1));
    assert_eq!(uffd.zeropage(range(&map, 0, 4)), stopped(2, Errno::AGAIN));
    assert_eq!(uffd.zeropage(range(&map, 2, 1)), stopped(0, Errno::EXIST));
    let zeros = || {
        let mut found = Vec::new();
        pagemap::scan(range(&map, 0, 4), pagemap::ZERO_PAGE, |run, _| {
            found.push(run)
        })
        .unwrap();
        found
    };
    assert_eq!(zeros(), [range(&map, 0, 2)]);
    assert_eq!((read(&map, 0), read(&map, 2)), (0, 1));
    // A write needs no help, and takes a page of its own.
    write(&map, 0, 9);
    assert_eq!(zeros(), [range(&map, 1, 1)]);
}

#[test]
fn a_missing_page_waits_for_its_copy() {
    let _alone = alone();
    let map = pages(4);
    let uffd = registered(&map, 0);
    thread::scope(|scope| {
        let reader = scope.spawn(|| read(&map, 1));
        let expected = |write| Event::PageFault {
            address: range(&map, 1, 1).start,
            write,
            write_protected: false,
            minor: false,
        };
        assert_eq!(next(&uffd), expected(false));
        assert_eq!(uffd.copy(&data(7, 1), range(&map, 1, 1).start), all(1));
        assert_eq!(reader.join().unwrap(), 7);
    });
    thread::scope(|scope| {
        scope.spawn(|| write(&map, 2, 5));
        let fault = next(&uffd);
        assert!(
            matches!(fault, Event::PageFault { write: true, .. }),
            "{fault:?}"
        );
        assert_eq!(uffd.copy(&data(0, 1), range(&map, 2, 1).start), all(1));
    });
    assert_eq!(read(&map, 2), 5);
}

#[test]
fn a_wake_makes_the_touch_repeat() {
    let _alone = alone();
    let map = pages(1);
    let uffd = registered(&map, 0);
    thread::scope(|scope| {
        let reader = scope.spawn(|| read(&map, 0));
        for _ in 0..3 {
            let fault = next(&uffd);
            assert!(matches!(fault, Event::PageFault { .. }), "{fault:?}");
            assert!(!reader.is_finished());
            uffd.wake(range(&map, 0, 1)).unwrap();
        }
        next(&uffd);
        assert_eq!(uffd.copy(&data(1, 1), map.address()), all(1));
        assert_eq!(reader.join().unwrap(), 1);
    });
    assert_eq!(uffd.wake(1..PAGE), Err(Errno::INVAL));
}

#[test]
fn a_write_to_a_protected_page_waits_for_the_end_of_the_protection() {
    let _alone = alone();
    let map = pages(2);
    let uffd = Uffd::open(UFFD_FEATURE_PAGEFAULT_FLAG_WP.into()).unwrap();
    assert_eq!(
        registered_for_missing_only(&map).write_protect(range(&map, 0, 1), true),
        Err(Errno::NOENT),
        "not registered for it"
    );
    uffd.register(range(&map, 0, 2), true).unwrap();
    assert_eq!(uffd.copy(&data(1, 2), map.address()), all(2));
    uffd.write_protect(range(&map, 0, 1), true).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| write(&map, 0, 8));
        let expected = Event::PageFault {
            address: map.address(),
            write: true,
            write_protected: true,
            minor: false,
        };
        assert_eq!(next(&uffd), expected);
        assert_eq!(read(&map, 0), 1, "reads do not wait");
        write(&map, 1, 9);
        uffd.write_protect(range(&map, 0, 1), false).unwrap();
    });
    assert_eq!((read(&map, 0), read(&map, 1)), (8, 9));
}

/// Registered and given up again, so that only the errno of the call itself is left to see.
fn registered_for_missing_only(map: &Mapping) -> Uffd {
    let uffd = registered(map, UFFD_FEATURE_PAGEFAULT_FLAG_WP);
    uffd.unregister(map.address()..map.address() + map.len())
        .unwrap();
    uffd
}

/// Two views of shared memory; the first is registered for pages that are there but not mapped.
#[test]
fn shared_memory_that_is_there_is_mapped_by_continue() {
    let _alone = alone();
    const LEN: usize = 2 * PAGE;
    // SAFETY: new mappings of a new file, unmapped with the process; the ioctl takes the structure.
    let (uffd, view, other) = unsafe {
        let file = libc::memfd_create(c"uhmm-test".as_ptr(), libc::MFD_CLOEXEC);
        assert!(file >= 0 && libc::ftruncate(file, LEN as i64) == 0);
        let map = || {
            let all = libc::PROT_READ | libc::PROT_WRITE;
            let view = libc::mmap(std::ptr::null_mut(), LEN, all, libc::MAP_SHARED, file, 0);
            assert_ne!(view, libc::MAP_FAILED);
            view.cast::<u8>()
        };
        let (view, other) = (map(), map());
        let uffd = Uffd::open(UFFD_FEATURE_MINOR_SHMEM.into()).unwrap();
        let mut register = uffdio_register {
            range: uffdio_range {
                start: view as u64,
                len: LEN as u64,
            },
            mode: UFFDIO_REGISTER_MODE_MINOR.into(),
            ioctls: 0,
        };
        // UFFDIO_REGISTER
        let done = libc::ioctl(uffd.fd().as_raw_fd(), 0xc020_aa00, &raw mut register);
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        other.write(6);
        (uffd, view as usize, other as usize)
    };
    thread::scope(|scope| {
        // SAFETY: mapped as above.
        let reader = scope.spawn(move || unsafe { (view as *const u8).read_volatile() });
        let fault = next(&uffd);
        assert!(
            matches!(fault, Event::PageFault { minor: true, .. }),
            "{fault:?}"
        );
        // SAFETY: mapped as above.
        unsafe { (other as *mut u8).write_volatile(7) };
        assert_eq!(uffd.resume(view..view + PAGE), all(1));
        assert_eq!(reader.join().unwrap(), 7);
    });
    assert_eq!(uffd.resume(view..view + PAGE), stopped(0, Errno::EXIST));
    let absent = uffd.resume(view + PAGE..view + LEN);
    assert_eq!(
        absent,
        stopped(0, Errno::FAULT),
        "nothing is there to be mapped"
    );
}

#[test]
fn a_poisoned_page_is_a_bus_error() {
    let _alone = alone();
    let map = pages(4);
    let uffd = registered(&map, UFFD_FEATURE_POISON);
    assert_eq!(uffd.copy(&data(1, 1), range(&map, 2, 1).start), all(1));
    assert_eq!(uffd.poison(range(&map, 0, 1)), all(1));
    // Only missing pages can be poisoned, once.
    assert_eq!(uffd.poison(range(&map, 0, 1)), stopped(0, Errno::EXIST));
    assert_eq!(uffd.poison(range(&map, 1, 2)), stopped(1, Errno::AGAIN));
    for page in [0, 1] {
        let status = wait(child(|| read(&map, page).into()));
        assert!(libc::WIFSIGNALED(status), "{status:#x}");
        assert_eq!(libc::WTERMSIG(status), libc::SIGBUS);
    }
    assert_eq!(read(&map, 2), 1);
    // Whoever gives the contents up is rid of it.
    map.discard(0, PAGE);
    assert_eq!(uffd.copy(&data(5, 1), map.address()), all(1));
    assert_eq!(read(&map, 0), 5);
    // And so is who copies there: the kernel does not protect the poison.
    assert_eq!(uffd.copy(&data(6, 1), range(&map, 1, 1).start), all(1));
    assert_eq!(read(&map, 1), 6);
}

#[test]
fn a_range_has_one_userfaultfd() {
    let _alone = alone();
    let map = pages(2);
    let _first = registered(&map, 0);
    let second = Uffd::open(0).unwrap();
    let refused = second.register(range(&map, 0, 2), false).unwrap_err();
    assert_eq!(refused, Errno::BUSY);
    let message = SetupError::Register(refused).to_string();
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.contains("another userfaultfd"), "{message}");
    for error in [
        SetupError::Reserve(Errno::NOMEM),
        SetupError::Register(Errno::INVAL),
        SetupError::Stats,
        SetupError::Open(OpenError::Open(Errno::PERM)),
        SetupError::Open(OpenError::Features(UFFD_FEATURE_MOVE.into())),
    ] {
        let message = error.to_string();
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(message.len() > 15, "{message}");
    }
}

#[test]
fn features_that_no_kernel_has_are_named() {
    let _alone = alone();
    let unknown = 1 << 62;
    let refused = Uffd::open(unknown).unwrap_err();
    assert_eq!(refused, OpenError::Features(unknown));
    assert!(
        refused.to_string().contains("0x4000000000000000"),
        "{refused}"
    );
    let has = Uffd::features().unwrap();
    assert_ne!(has & u64::from(UFFD_FEATURE_MOVE), 0);
}

#[test]
fn the_descriptor_moves_out_of_the_way() {
    let _alone = alone();
    let uffd = Uffd::open(0).unwrap().moved_up(600);
    assert!(uffd.fd().as_raw_fd() >= 600);
    let map = pages(1);
    common::register(&uffd, &map);
    assert_eq!(uffd.copy(&data(1, 1), map.address()), all(1));
}
