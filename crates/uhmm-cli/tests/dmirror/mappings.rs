//! What the program does to its mappings, and what devices see of it.

use crate::device::*;
use crate::processes::in_child;
use crate::with_devices;

/// All kinds of devices.
const UNITS: [usize; 2] = [0, 2];

fn protect(at: usize, pages: usize, prot: i32) {
    assert_eq!(
        unsafe { libc::mprotect(at as *mut _, pages * PAGE, prot) },
        0
    );
}

fn advise(at: usize, pages: usize, advice: i32) {
    assert_eq!(
        unsafe { libc::madvise(at as *mut _, pages * PAGE, advice) },
        0
    );
}

/// Maps zeros over what is there.
fn map_over(at: usize, pages: usize) {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let mapped = unsafe { libc::mmap(at as *mut _, pages * PAGE, prot, flags, -1, 0) };
    assert_eq!(mapped as usize, at);
}

with_devices! {
    fn pages_go_and_come_back() {
        for unit in 0..4 {
            let (fd, bytes) = (device(unit), pattern(700, unit as u64));
            let memory = filled(&bytes);
            let away = if unit < 2 { PRIVATE } else { COHERENT };
            migrate(fd, memory, &bytes);
            assert_eq!(snapshot(fd, memory, 700), [away; 700]);
            assert_eq!(command(fd, TO_SYSTEM, memory, 300, 0).unwrap().cpages, 300);
            assert_eq!(snapshot(fd, memory, 300), [WRITABLE; 300]);
            assert!(bytes_of(memory, bytes.len()) == bytes);
            close(fd).unwrap();
        }
    }
}

with_devices! {
    /// Once as the devices have it, and once as they have only looked at it.
    fn what_is_unmapped_is_gone_everywhere() {
        for unit in UNITS {
            let (fd, bytes) = (device(unit), pattern(8, 1));
            for is_away in [true, false] {
                let memory = filled(&bytes);
                if is_away {
                    migrate(fd, memory, &bytes);
                }
                assert!(read(fd, memory, 8).unwrap() == bytes);
                unmap(memory + 2 * PAGE, 3);
                assert_eq!(read(fd, memory, 8).unwrap_err(), libc::EFAULT);
                assert_eq!(read(fd, memory + 2 * PAGE, 1).unwrap_err(), libc::EFAULT);
                assert_eq!(snapshot(fd, memory + PAGE, 5)[1..4], [ERROR; 3]);
                assert!(bytes_of(memory, 2 * PAGE) == &bytes[..2 * PAGE]);
                assert!(bytes_of(memory + 5 * PAGE, 3 * PAGE) == &bytes[5 * PAGE..]);
                // What is mapped there now is new.
                map_over(memory + 2 * PAGE, 3);
                assert!(read(fd, memory + 2 * PAGE, 3).unwrap().iter().all(|byte| *byte == 0));
                migrate(fd, memory, &[&bytes[..2 * PAGE], &[0; 3 * PAGE], &bytes[5 * PAGE..]].concat());
                unmap(memory, 8);
            }
            close(fd).unwrap();
        }
    }
}

with_devices! {
    fn what_is_mapped_over_or_discarded_is_zeros() {
        for unit in UNITS {
            let (fd, bytes) = (device(unit), pattern(6, 2));
            let memory = filled(&bytes);
            migrate(fd, memory, &bytes);
            map_over(memory, 2);
            advise(memory + 2 * PAGE, 2, libc::MADV_DONTNEED);
            let expected = [&[0; 4 * PAGE][..], &bytes[4 * PAGE..]].concat();
            assert!(read(fd, memory, 6).unwrap() == expected);
            assert!(bytes_of(memory, 6 * PAGE) == expected);
            close(fd).unwrap();
            assert!(bytes_of(memory, 6 * PAGE) == expected, "nothing comes back from the device");
        }
    }
}

with_devices! {
    fn protection_holds_for_devices_too() {
        let read_only = libc::PROT_READ;
        for unit in UNITS {
            let (fd, bytes) = (device(unit), pattern(4, 3));
            let memory = filled(&bytes);
            for is_away in [false, true] {
                if is_away {
                    migrate(fd, memory, &bytes);
                }
                assert!(write(fd, memory, &bytes).is_ok());
                protect(memory, 4, read_only);
                assert_eq!(write(fd, memory, &bytes).unwrap_err(), libc::EPERM);
                assert!(read(fd, memory, 4).unwrap() == bytes);
                protect(memory + PAGE, 1, libc::PROT_NONE);
                assert_eq!(read(fd, memory, 4).unwrap_err(), libc::EFAULT);
                assert_eq!(snapshot(fd, memory, 4)[1], ERROR);
                protect(memory, 4, read_only | libc::PROT_WRITE);
                let other = pattern(4, 4);
                assert!(write(fd, memory, &other).is_ok());
                assert!(bytes_of(memory, 4 * PAGE) == other);
                bytes_of(memory, 4 * PAGE).copy_from_slice(&bytes);
            }
            close(fd).unwrap();
        }
    }
}

with_devices! {
    fn what_is_moved_keeps_its_bytes() {
        for unit in UNITS {
            let (fd, bytes) = (device(unit), pattern(8, 5));
            let memory = filled(&bytes);
            migrate(fd, memory, &bytes);
            let to = map(16);
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            let moved = unsafe { libc::mremap(memory as *mut _, 8 * PAGE, 8 * PAGE, flags, to) };
            assert_eq!(moved as usize, to);
            assert_eq!(read(fd, memory, 8).unwrap_err(), libc::EFAULT);
            assert!(read(fd, to, 8).unwrap() == bytes);
            assert!(bytes_of(to, 8 * PAGE) == bytes);
            migrate(fd, to, &bytes);
            let grown = unsafe { libc::mremap(to as *mut _, 8 * PAGE, 64 * PAGE, libc::MREMAP_MAYMOVE) };
            let expected = [&bytes[..], &[0; 56 * PAGE]].concat();
            assert!(bytes_of(grown as usize, 64 * PAGE) == expected);
            migrate(fd, grown as usize, &expected);
            close(fd).unwrap();
        }
    }
}

with_devices! {
    /// What managed memory does not go with makes it the program's again.
    fn what_is_locked_or_not_for_children_comes_home() {
        for unit in UNITS {
            let (fd, bytes) = (device(unit), pattern(4, 6));
            let is_home = |memory| {
                assert_eq!(snapshot(fd, memory, 4), [WRITABLE; 4]);
                assert!(bytes_of(memory, bytes.len()) == bytes);
            };
            let memory = filled(&bytes);
            migrate(fd, memory, &bytes);
            advise(memory, 4, libc::MADV_WIPEONFORK);
            is_home(memory);
            in_child(|| assert!(bytes_of(memory, bytes.len()).iter().all(|byte| *byte == 0)));
            is_home(memory);

            let memory = filled(&bytes);
            migrate(fd, memory, &bytes);
            advise(memory, 4, libc::MADV_DONTFORK);
            in_child(|| assert_eq!(unsafe { libc::madvise(memory as *mut _, PAGE, 0) }, -1));
            is_home(memory);

            let memory = filled(&bytes);
            migrate(fd, memory, &bytes);
            assert_eq!(unsafe { libc::mlock(memory as *const _, bytes.len()) }, 0);
            is_home(memory);
            assert_eq!(unsafe { libc::munlock(memory as *const _, bytes.len()) }, 0);
            assert_eq!(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) }, 0);
            close(fd).unwrap();
        }
    }
}

with_devices! {
    /// Huge and merged pages are no business of the kernel's where frames are a device's.
    fn hints_leave_pages_where_they_are() {
        for (unit, away) in [(0, PRIVATE), (2, COHERENT)] {
            let (fd, bytes) = (device(unit), pattern(1024, 7));
            let memory = filled(&bytes);
            migrate(fd, memory, &bytes);
            for advice in [libc::MADV_HUGEPAGE, libc::MADV_COLLAPSE, libc::MADV_MERGEABLE] {
                advise(memory, 1024, advice);
                assert_eq!(snapshot(fd, memory, 1024), [away; 1024]);
            }
            assert!(bytes_of(memory, bytes.len()) == bytes);
            close(fd).unwrap();
        }
    }
}

with_devices! {
    /// As glibc does with the stacks of threads: what comes there next is found as it is.
    fn what_was_unmapped_behind_our_back_is_found_out() {
        for unit in UNITS {
            let (fd, bytes) = (device(unit), pattern(8, 8));
            let memory = filled(&bytes);
            migrate(fd, memory, &bytes);
            let len = 8 * PAGE;
            assert_eq!(unsafe { libc::syscall(libc::SYS_munmap, memory, len) }, 0);
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
            let mapped = unsafe { libc::mmap(memory as *mut _, len, prot, flags, -1, 0) };
            assert_eq!(mapped as usize, memory);
            assert!(read(fd, memory, 8).unwrap().iter().all(|byte| *byte == 0));
            bytes_of(memory, len).copy_from_slice(&bytes);
            migrate(fd, memory, &bytes);
            close(fd).unwrap();
            assert!(bytes_of(memory, len) == bytes);
        }
    }
}

with_devices! {
    /// The allocator's memory is the program's like any other.
    fn memory_of_malloc_migrates_and_is_freed() {
        let fd = device(0);
        for round in 0..20 {
            let bytes = pattern(512, round);
            let copy = bytes.clone();
            let start = (copy.as_ptr() as usize).next_multiple_of(PAGE);
            let skipped = start - copy.as_ptr() as usize;
            let pages = (copy.len() - skipped) / PAGE;
            migrate(fd, start, &bytes[skipped..][..pages * PAGE]);
            assert!(copy == bytes);
        }
        close(fd).unwrap();
    }
}

with_devices! {
    /// Pages are read, sent away and unmapped at once by several threads: no answer is wrong.
    fn threads_may_do_it_all_at_once() {
        let bytes = &pattern(64, 6);
        std::thread::scope(|scope| {
            for unit in [0, 1, 2, 3] {
                scope.spawn(move || {
                    for _ in 0..20 {
                        let (fd, memory) = (device(unit), filled(bytes));
                        migrate(fd, memory, bytes);
                        let copy = unsafe { libc::dup(fd) };
                        close(fd).unwrap();
                        assert!(read(copy, memory, 64).unwrap() == *bytes);
                        let half = memory + 32 * PAGE;
                        let other = scope.spawn(move || unmap(half, 32));
                        if let Ok(read) = read(copy, memory, 64) {
                            assert!(read == *bytes);
                        }
                        other.join().unwrap();
                        assert!(bytes_of(memory, 32 * PAGE) == &bytes[..32 * PAGE]);
                        assert_eq!(read(copy, half, 1).unwrap_err(), libc::EFAULT);
                        unmap(memory, 32);
                        close(copy).unwrap();
                    }
                });
            }
        });
    }
}

with_devices! {
    /// All that is private and may be written is told to go. What serves faults stays, and so the rest comes
    /// back: the program goes on as if nothing had been.
    fn a_program_that_sends_everything_away_goes_on() {
        let fd = device(0);
        let here = &raw const fd as usize;
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let mut buffer = vec![0_u8; 16 << 20];
        for line in maps.lines().filter(|line| line.contains(" rw-p ")) {
            let (start, rest) = line.split_once('-').unwrap();
            let (end, _) = rest.split_once(' ').unwrap();
            let parse = |hex| usize::from_str_radix(hex, 16).unwrap();
            let range = parse(start)..parse(end);
            // No thread can wait for its own stack.
            if !range.contains(&here) && range.len() <= buffer.len() {
                let pages = range.len() / PAGE;
                let to = buffer.as_mut_ptr() as usize;
                let _ = command(fd, TO_DEVICE, range.start, pages, to);
            }
        }
        let thread = std::thread::spawn(|| vec![1_u8; 1 << 20].iter().map(|n| u64::from(*n)).sum());
        let sum: u64 = thread.join().unwrap();
        assert_eq!(sum, 1 << 20);
        close(fd).unwrap();
    }
}
