//! Messages other than faults, and reads that are interrupted.

use crate::common::{PAGE, all, alone, child, data, next, pages, range, read, register, wait};
use linux_raw_sys::general::*;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;
use uhmm_linux::abi::uffd::{Event, Messages, Uffd};

#[test]
fn dropped_contents_are_told() {
    let _alone = alone();
    let map = pages(4);
    let uffd = Uffd::open(UFFD_FEATURE_EVENT_REMOVE.into()).unwrap();
    register(&uffd, &map);
    assert_eq!(uffd.copy(&data(1, 4), map.address()), all(4));
    thread::scope(|scope| {
        scope.spawn(|| map.discard(PAGE, 2 * PAGE));
        assert_eq!(next(&uffd), Event::Remove(range(&map, 1, 2)));
    });
}

#[test]
fn an_unmapped_range_is_told() {
    let _alone = alone();
    let map = pages(4);
    let uffd = Uffd::open(UFFD_FEATURE_EVENT_UNMAP.into()).unwrap();
    register(&uffd, &map);
    let hole = range(&map, 1, 2);
    thread::scope(|scope| {
        let start = hole.start;
        // SAFETY: nobody uses these pages; the mapping is unmapped as a whole later, holes too.
        scope.spawn(move || unsafe { libc::munmap(start as *mut _, 2 * PAGE) });
        assert_eq!(next(&uffd), Event::Unmap(hole));
    });
    uffd.unregister(range(&map, 0, 1)).unwrap();
    uffd.unregister(range(&map, 3, 1)).unwrap();
}

#[test]
fn a_moved_mapping_is_told() {
    let _alone = alone();
    let map = pages(4);
    let uffd = Uffd::open(UFFD_FEATURE_EVENT_REMAP.into()).unwrap();
    register(&uffd, &map);
    assert_eq!(uffd.copy(&data(1, 4), map.address()), all(4));
    let from = map.address();
    thread::scope(|scope| {
        let mover = scope.spawn(move || {
            // SAFETY: moves pages that nobody uses to where the kernel finds room.
            unsafe {
                let room = libc::mmap(
                    std::ptr::null_mut(),
                    2 * PAGE,
                    libc::PROT_NONE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                );
                let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
                libc::mremap(from as *mut _, 2 * PAGE, 2 * PAGE, flags, room) as usize
            }
        });
        let Event::Remap { from: old, to, len } = next(&uffd) else {
            panic!("not a remap");
        };
        assert_eq!((old, len), (from, 2 * PAGE));
        assert_eq!(mover.join().unwrap(), to);
        // The registration has moved along.
        // SAFETY: just mapped by the move above.
        assert_eq!(unsafe { (to as *const u8).read() }, 1);
    });
}

/// The child's copy of the ranges comes with a descriptor of its own.
#[test]
fn a_fork_is_told_and_brings_a_descriptor() {
    let _alone = alone();
    let map = pages(2);
    let uffd = match Uffd::open(UFFD_FEATURE_EVENT_FORK.into()) {
        Ok(uffd) => uffd,
        Err(error) => {
            // This feature takes CAP_SYS_PTRACE.
            // SAFETY: only asks who we are.
            assert_ne!(unsafe { libc::geteuid() }, 0, "{error}");
            eprintln!("the event of a fork is not tested: not allowed here: {error}");
            return;
        }
    };
    register(&uffd, &map);
    thread::scope(|scope| {
        let parent = scope.spawn(|| wait(child(|| read(&map, 1).into())));
        let Event::Fork(fd) = next(&uffd) else {
            panic!("not a fork");
        };
        // SAFETY: the message hands the descriptor over.
        let _child_fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut copy = uffdio_copy {
            dst: range(&map, 1, 1).start as u64,
            src: data(42, 1).leak().as_ptr() as u64,
            len: PAGE as u64,
            mode: 0,
            copy: 0,
        };
        // SAFETY: UFFDIO_COPY into the child, from a page of ours.
        while unsafe { libc::ioctl(fd, 0xc028_aa03, &raw mut copy) } != 0 {
            let error = std::io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(libc::EAGAIN), "{error}");
        }
        let status = parent.join().unwrap();
        assert!(libc::WIFEXITED(status), "{status:#x}");
        assert_eq!(libc::WEXITSTATUS(status), 42);
    });
}

#[test]
fn an_interrupted_read_is_no_error() {
    let _alone = alone();
    static HIT: AtomicBool = AtomicBool::new(false);
    extern "C" fn hit(_: libc::c_int) {
        HIT.store(true, SeqCst);
    }
    let uffd = Uffd::open(0).unwrap();
    let reader_thread = AtomicU64::new(0);
    // SAFETY: the handler stores to an atomic; without SA_RESTART it interrupts the read.
    unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        action.sa_sigaction = hit as extern "C" fn(libc::c_int) as usize;
        assert_eq!(
            libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()),
            0
        );
    }
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            // SAFETY: only asks who we are.
            reader_thread.store(unsafe { libc::pthread_self() }, SeqCst);
            let mut events = 0;
            let result = uffd.read(&mut Messages::default(), |_| events += 1);
            (result, events)
        });
        while !reader.is_finished() {
            thread::sleep(Duration::from_millis(10));
            match reader_thread.load(SeqCst) {
                0 => {}
                // SAFETY: the scope joins the thread later, so the number is still its.
                thread => unsafe {
                    libc::pthread_kill(thread, libc::SIGUSR1);
                },
            }
        }
        assert_eq!(reader.join().unwrap(), (Ok(()), 0));
    });
    assert!(HIT.load(SeqCst));
}
