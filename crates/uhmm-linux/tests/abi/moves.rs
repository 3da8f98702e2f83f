//! `UFFDIO_MOVE`: pages change their place and keep their memory, or stay where they are.

use crate::common::{
    PAGE, Sleeper, all, alone, data, pages, range, read, register, registered, stopped,
};
use linux_raw_sys::general::UFFD_FEATURE_MOVE;
use rustix::io::Errno;
use rustix::mm::{Advice, MprotectFlags, madvise};
use uhmm_linux::abi::uffd::Uffd;
use uhmm_linux::mapping::Mapping;

/// Two ranges of one userfaultfd; the first holds pages 1 to 4.
fn two() -> (Uffd, Mapping, Mapping) {
    let (from, to) = (pages(8), pages(8));
    let uffd = registered(&from, UFFD_FEATURE_MOVE);
    register(&uffd, &to);
    assert_eq!(uffd.copy(&data(1, 4), from.address()), all(4));
    (uffd, from, to)
}

#[test]
fn moved_pages_are_there_and_no_longer_here() {
    let _alone = alone();
    let (uffd, from, to) = two();
    assert_eq!(
        uffd.move_pages(from.address(), to.address(), 4 * PAGE),
        all(4)
    );
    assert_eq!([0, 1, 2, 3].map(|page| read(&to, page)), [1, 2, 3, 4]);
    // Missing again: a copy finds room.
    assert_eq!(uffd.copy(&data(9, 4), from.address()), all(4));
}

#[test]
fn a_move_stops_at_a_hole_and_at_what_is_there() {
    let _alone = alone();
    let (uffd, from, to) = two();
    let at = |map: &Mapping, page| range(map, page, 1).start;
    assert_eq!(
        uffd.move_pages(at(&from, 2), at(&to, 2), 4 * PAGE),
        stopped(2, Errno::AGAIN),
        "partial progress"
    );
    assert_eq!(
        uffd.move_pages(at(&from, 4), at(&to, 4), PAGE),
        stopped(0, Errno::NOENT),
        "a hole"
    );
    assert_eq!(
        uffd.move_pages(at(&from, 0), at(&to, 2), PAGE),
        stopped(0, Errno::EXIST)
    );
    assert_eq!(read(&from, 0), 1);
    assert_eq!(read(&to, 3), 4);
}

#[test]
fn pages_of_a_read_only_range_do_not_move() {
    let _alone = alone();
    let (uffd, from, to) = two();
    from.protect(0, from.len(), MprotectFlags::READ).unwrap();
    let refused = uffd.move_pages(from.address(), to.address(), PAGE);
    assert_eq!(refused, stopped(0, Errno::INVAL));
    assert_eq!(read(&from, 0), 1);
}

#[test]
fn pages_shared_after_a_fork_move_once_they_are_private() {
    let _alone = alone();
    let (uffd, from, to) = two();
    let sleeper = Sleeper::new();
    let move_first = || uffd.move_pages(from.address(), to.address(), PAGE);
    assert_eq!(move_first(), stopped(0, Errno::BUSY));
    // SAFETY: our own mapping; a private copy changes no bytes.
    let populate = unsafe { madvise(from.at(0).cast(), PAGE, Advice::LinuxPopulateWrite) };
    populate.unwrap();
    assert_eq!(move_first(), all(1));
    assert_eq!(read(&to, 0), 1);
    let second = range(&from, 1, 1).start;
    assert_eq!(
        uffd.move_pages(second, range(&to, 1, 1).start, PAGE),
        stopped(0, Errno::BUSY),
        "each page by itself"
    );
    drop(sleeper);
}

/// Buffers registered with an io_uring are pinned for as long as that is open.
fn pinned(pages: std::ops::Range<usize>) -> std::io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    const REGISTER_BUFFERS: libc::c_int = 0;
    // SAFETY: the calls take a zeroed structure of the kernel's size, and an array of one buffer.
    unsafe {
        let mut parameters = [0u32; 30];
        let ring = libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr());
        if ring < 0 {
            return Err(std::io::Error::last_os_error());
        }
        let ring = OwnedFd::from_raw_fd(ring as i32);
        let buffer = libc::iovec {
            iov_base: pages.start as *mut _,
            iov_len: pages.len(),
        };
        let fd = ring.as_raw_fd();
        let done = libc::syscall(
            libc::SYS_io_uring_register,
            fd,
            REGISTER_BUFFERS,
            &raw const buffer,
            1,
        );
        if done < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(ring)
    }
}

#[test]
fn a_pinned_page_does_not_move() {
    let _alone = alone();
    let (uffd, from, to) = two();
    let pin = match pinned(range(&from, 1, 1)) {
        Ok(pin) => pin,
        Err(error) => {
            eprintln!("pinned pages are not tested: no io_uring here: {error}");
            return;
        }
    };
    let move_all = || uffd.move_pages(from.address(), to.address(), 4 * PAGE);
    assert_eq!(move_all(), stopped(1, Errno::AGAIN));
    let second = range(&from, 1, 1).start;
    let move_pinned = || uffd.move_pages(second, range(&to, 1, 1).start, PAGE);
    assert_eq!(move_pinned(), stopped(0, Errno::BUSY));
    // A private copy does not help: it is not shared.
    // SAFETY: our own mapping; nothing changes.
    unsafe { madvise(from.at(PAGE).cast(), PAGE, Advice::LinuxPopulateWrite) }.unwrap();
    assert_eq!(move_pinned(), stopped(0, Errno::BUSY));
    assert_eq!(read(&from, 1), 2);
    drop(pin);
    // The kernel ends the pin a little later.
    let begin = std::time::Instant::now();
    while move_pinned() != all(1) {
        assert!(begin.elapsed().as_secs() < 10, "the pin never ends");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(read(&to, 1), 2);
}
