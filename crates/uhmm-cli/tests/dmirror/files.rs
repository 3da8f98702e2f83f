//! Descriptors: what is there, what a command answers, and when a file ends.

use crate::device::*;
use crate::with_devices;
use std::ptr::{null, null_mut};

with_devices! {
    fn the_devices_are_there_and_no_others() {
        for unit in 0..4 {
            let fd = device(unit);
            let copy = device(unit);
            assert_ne!(fd, copy);
            close(copy).unwrap();
            close(fd).unwrap();
        }
        close(open("/sys/kernel/debug/gup_test").unwrap()).unwrap();
        for missing in [
            "/dev/hmm_dmirror4",
            "/dev/hmm_dmirror",
            "/dev/hmm_dmirror00",
            "/dev/hmm_dmirror0/x",
            "/sys/kernel/debug/gup_test_of_nobody",
        ] {
            assert_eq!(open(missing), Err(libc::ENOENT), "{missing}");
        }
        for bad in [null(), 0x123 as *const _, usize::MAX as *const _] {
            assert_eq!(result(unsafe { libc::open(bad, libc::O_RDWR) }), Err(libc::EFAULT));
        }
    }
}

with_devices! {
    /// A path that ends where memory does is read no further.
    fn every_way_to_open_is_one() {
        unsafe extern "C" {
            fn __open_2(path: *const libc::c_char, flags: i32) -> i32;
            fn __open64_2(path: *const libc::c_char, flags: i32) -> i32;
            fn __openat_2(at: i32, path: *const libc::c_char, flags: i32) -> i32;
            fn __openat64_2(at: i32, path: *const libc::c_char, flags: i32) -> i32;
        }
        let name = c"/dev/hmm_dmirror1".to_bytes_with_nul();
        let at = map(2);
        let guard = (at + PAGE) as *mut libc::c_void;
        assert_eq!(unsafe { libc::mprotect(guard, PAGE, libc::PROT_NONE) }, 0);
        let place = at + PAGE - name.len();
        bytes_of(place, name.len()).copy_from_slice(name);
        let (path, here) = (place as *const libc::c_char, libc::AT_FDCWD);
        let plain = libc::O_RDWR;
        let private = plain | libc::O_CLOEXEC;
        for (fd, flags) in unsafe {
            [
                (libc::open(path, plain), plain),
                (libc::open64(path, private), private),
                (libc::openat(here, path, private), private),
                (libc::openat64(here, path, plain), plain),
                (__open_2(path, plain), plain),
                (__open64_2(path, private), private),
                (__openat_2(here, path, private), private),
                (__openat64_2(here, path, plain), plain),
            ]
        } {
            let has = unsafe { libc::fcntl(fd, libc::F_GETFD) } & libc::FD_CLOEXEC != 0;
            assert_eq!(has, flags == private);
            assert_eq!(snapshot(fd, at, 2), [WRITABLE, ERROR]);
            close(fd).unwrap();
        }
        let with = |flags| result(unsafe { libc::open(path, flags) });
        assert_eq!(with(libc::O_DIRECTORY), Err(libc::ENOTDIR));
        assert_eq!(with(libc::O_CREAT | libc::O_EXCL), Err(libc::EEXIST));
    }
}

with_devices! {
    fn what_makes_no_sense_is_refused() {
        let (fd, memory) = (device(0), filled(&pattern(2, 1)));
        let mut given = Struct { addr: memory as u64, ptr: memory as u64, npages: 1, ..Struct::default() };
        for request in [READ + 8, 0, u64::from(libc::FIONREAD as u32), libc::TCGETS] {
            assert_eq!(ioctl(fd, request, &mut given), Err(libc::EINVAL), "{request:x}");
        }
        for bad in [null_mut(), 0x123 as *mut _, usize::MAX as *mut _] {
            assert_eq!(ioctl(fd, SNAPSHOT, bad), Err(libc::EFAULT));
        }
        // A struct that is only half there, and one that cannot be written to.
        unmap(memory + PAGE, 1);
        let half = (memory + PAGE - 16) as *mut Struct;
        assert_eq!(ioctl(fd, SNAPSHOT, half), Err(libc::EFAULT));
        let constant = map(1) as *mut Struct;
        unsafe {
            *constant = given;
            assert_eq!(libc::mprotect(constant.cast(), PAGE, libc::PROT_READ), 0);
        }
        assert_eq!(ioctl(fd, CHECK_EXCLUSIVE, constant), Err(libc::EFAULT));
        for (address, pages) in [(memory + 1, 1), (memory, 0), (memory, usize::MAX)] {
            assert_eq!(command(fd, READ, address, pages, memory).unwrap_err(), libc::EINVAL);
        }
        close(fd).unwrap();
        for request in [SNAPSHOT, READ + 8] {
            assert_eq!(ioctl(fd, request, &mut given), Err(libc::EBADF));
        }
        assert_eq!(close(fd), Err(libc::EBADF));
        assert_eq!(ioctl(-1, SNAPSHOT, &mut given), Err(libc::EBADF));
    }
}

with_devices! {
    fn files_of_others_are_as_they_were() {
        let fd = device(0);
        let mut ends = [0; 2];
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
        assert_eq!(unsafe { libc::write(ends[1], c"abc".as_ptr().cast(), 3) }, 3);
        let mut waiting = 0_i32;
        assert_eq!(unsafe { libc::ioctl(ends[0], libc::FIONREAD, &mut waiting) }, 0);
        assert_eq!(waiting, 3);
        let mut given = Struct::default();
        assert_eq!(ioctl(ends[0], SNAPSHOT, &mut given), Err(libc::ENOTTY));
        // A file in memory that is not ours is none of the devices.
        let memory = unsafe { libc::memfd_create(c"hmm_dmirror0".as_ptr(), 0) };
        assert_eq!(ioctl(memory, SNAPSHOT, &mut given), Err(libc::ENOTTY));
        for fd in [ends[0], ends[1], memory, fd] {
            close(fd).unwrap();
        }
    }
}

with_devices! {
    fn a_file_is_open_until_its_last_descriptor_is_closed() {
        let bytes = pattern(4, 2);
        let (first, watch) = (device(0), device(1));
        let memory = filled(&bytes);
        migrate(first, memory, &bytes);
        let is_away = || snapshot(watch, memory, 4) == [NONE; 4];
        assert!(is_away());

        let second = unsafe { libc::dup(first) };
        let third = unsafe { libc::fcntl(first, libc::F_DUPFD_CLOEXEC, 100) };
        assert!(third >= 100);
        close(first).unwrap();
        assert_eq!(snapshot(third, memory, 4), [PRIVATE; 4]);
        // Over another one's number, and another file over its own.
        assert_eq!(unsafe { libc::dup2(third, second) }, second);
        assert_eq!(unsafe { libc::dup3(watch, third, 0) }, third);
        assert!(is_away());
        let fourth = 200;
        assert_eq!(unsafe { libc::dup2(second, fourth) }, fourth);
        assert_eq!(unsafe { libc::close_range(second as u32, second as u32, 0) }, 0);
        assert_eq!(snapshot(fourth, memory, 4), [PRIVATE; 4]);
        assert_eq!(unsafe { libc::dup2(watch, fourth) }, fourth);
        assert_eq!(snapshot(watch, memory, 4), [WRITABLE; 4], "its last descriptor is gone");
        assert!(bytes_of(memory, bytes.len()) == bytes);
    }
}

with_devices! {
    fn a_range_of_closes_ends_what_is_in_it() {
        let bytes = pattern(1, 3);
        let watch = device(3);
        let (low, high) = (device(2), 300);
        let memory = filled(&bytes);
        assert_eq!(unsafe { libc::dup2(low, high) }, high);
        migrate(low, memory, &bytes);
        assert_eq!(unsafe { libc::close_range(low as u32, 299, 0) }, 0);
        assert_eq!(snapshot(high, memory, 1), [COHERENT]);
        let flag = 4; // CLOSE_RANGE_CLOEXEC
        assert_eq!(unsafe { libc::close_range(250, u32::MAX, flag) }, 0);
        assert_eq!(snapshot(high, memory, 1), [COHERENT]);
        assert_eq!(unsafe { libc::close_range(250, u32::MAX, 0) }, 0);
        assert_eq!(snapshot(watch, memory, 1), [WRITABLE]);
    }
}

with_devices! {
    fn a_mapping_keeps_its_file_open() {
        let bytes = pattern(2, 4);
        let (fd, watch) = (device(0), device(1));
        let memory = filled(&bytes);
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let map = |fd, pages| unsafe {
            libc::mmap(null_mut(), pages * PAGE, prot, libc::MAP_PRIVATE, fd, 0) as usize
        };
        let pages = map(fd, 3);
        // It is there without being touched, and a copy is made when it is written to.
        assert_eq!(snapshot(fd, pages, 3), [READABLE; 3]);
        bytes_of(pages, PAGE)[0] = 1;
        assert_eq!(snapshot(fd, pages, 3), [WRITABLE, READABLE, READABLE]);
        let more = map(fd, 5);
        assert_eq!(snapshot(watch, more, 5), [READABLE; 5]);

        migrate(fd, memory, &bytes);
        close(fd).unwrap();
        assert_eq!(snapshot(watch, memory, 2), [NONE; 2]);
        unmap(pages, 3);
        let moved = unsafe {
            let to = libc::MREMAP_MAYMOVE;
            libc::mremap(more as *mut _, 5 * PAGE, 64 * PAGE, to) as usize
        };
        assert_eq!(snapshot(watch, memory, 2), [NONE; 2]);
        unmap(moved, 64);
        assert_eq!(snapshot(watch, memory, 2), [WRITABLE; 2]);

        let gup = open("/sys/kernel/debug/gup_test").unwrap();
        assert_eq!(map(gup, 1) as *mut _, libc::MAP_FAILED);
        assert_eq!(errno(), libc::ENODEV);
    }
}

with_devices! {
    /// Our own descriptors are not the program's to close, whatever else it closes.
    fn closing_everything_loses_no_page() {
        let bytes = pattern(3, 5);
        let (fd, memory) = (device(1), filled(&bytes));
        migrate(fd, memory, &bytes);
        assert_eq!(unsafe { libc::close_range(3, u32::MAX, 0) }, 0);
        assert!(bytes_of(memory, bytes.len()) == bytes);
        let fd = device(1);
        migrate(fd, memory, &bytes);
        assert!(bytes_of(memory, bytes.len()) == bytes);
    }
}
